//! Against published vectors, and against what OpenSSL 3.0 made of the same input.

use super::super::{Cipher, CipherAlg, CipherMode, Hash, IvGen, Suite, kdf, legacy_aes};
use super::hex;

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks_exact(2);
    digits.map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

fn cipher(alg: &str, mode: &str, ivgen: IvGen, hash: Option<Hash>, key: &[u8]) -> Cipher {
    let alg: CipherAlg = alg.parse().unwrap();
    let mode: CipherMode = mode.parse().unwrap();
    Cipher::new(Suite::new(alg, mode, ivgen, hash).unwrap(), key).unwrap()
}

#[test]
fn xts_is_that_of_ieee_1619() {
    // Annex B, vectors 4 and 10: a data unit of 512 bytes that counts up.
    let keys_128 = "2718281828459045235360287471352631415926535897932384626433832795";
    let keys_256 = "2718281828459045235360287471352662497757247093699959574966967627\
                    3141592653589793238462643383279502884197169399375105820974944592";
    let cases = [
        (
            "aes-128",
            keys_128,
            0,
            "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c",
            "ebee4d64dd2395bb2d6a2d37a0a48ecb2bf4913cfc99d27c2214f2f4144715ea",
        ),
        (
            "aes-256",
            keys_256,
            0xff,
            "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b",
            "e97e974fa393af794f7a4684395814cf820de60a01eaec677d87b452e316b364",
        ),
    ];
    for (alg, key, sector, start, digest) in cases {
        let cipher = cipher(alg, "xts", IvGen::Plain64, None, &unhex(key));
        let plain: Vec<u8> = (0..512u32).map(|i| i as u8).collect();
        let mut data = plain.clone();
        cipher.encrypt(sector, &mut data);
        assert_eq!(hex(&data[..32]), start, "{alg}");
        assert_eq!(hex(&kdf::digest(Hash::Sha256, &[&data])), digest, "{alg}");
        cipher.decrypt(sector, &mut data);
        assert_eq!(data, plain, "{alg}");
    }
}

#[test]
fn the_other_modes_are_those_of_openssl() {
    use IvGen::{Essiv, Plain, Plain64};
    let essiv = Some(Hash::Sha256);
    // Two sectors from this number on, which has more than 32 bits: first and last block, digest of the whole.
    const FIRST: u64 = 0x1_2345_6789;
    let cases = [
        (
            "aes-128",
            "cbc",
            Plain64,
            None,
            "be859b40a2c6e55cc549e51d4264f59d",
            "bcec1e0727a21da117a901931b0df757",
            "b466c005fe9b5c3b173b30cc0a8545b5280d6b5d9c94c17abd8d6d9a7427809b",
        ),
        (
            "aes-128",
            "cbc",
            Plain,
            None,
            "af804a04d7e741ca3220e15154a516a6",
            "9420732a073f6e3c12503a69a349c53d",
            "da73689cbc11a23ae59c179478d136fa8bdc84904fe696c58e8b97a5b0cc47d5",
        ),
        (
            "aes-192",
            "cbc",
            Plain64,
            None,
            "f2b22849f68849d06dba59ab5faaa029",
            "445a4c2284533cb53b9d97c48656d10e",
            "8e60ff7e7a84c58f0cda35d6b7c191b2fed9ff9bd265874816fe600a447c01ed",
        ),
        (
            "aes-256",
            "cbc",
            Essiv,
            essiv,
            "dd4e119950258edca69010bcd3630469",
            "91fca6358656f4131dde70c3c06fdfe1",
            "e030f4498d754582fdff55baae6de708e9b5c275cd927a542bbfe06b2e86b4d4",
        ),
        (
            "aes-128",
            "cbc",
            Essiv,
            essiv,
            "de24621a3d34ea987707821d63f4615c",
            "e4df92030b16428e9d2ab9acac69ae4d",
            "4e49b58d9e47d91dee7d4c1ec345c6a810cb22a46237fcb5e3043b697d7a6fce",
        ),
        (
            "aes-256",
            "ctr",
            Plain64,
            None,
            "86bc90d4429d30e754d04d2af53e65d0",
            "495c564196077fa699f01861511998ad",
            "53301e019c000e860410300ed1afd0261aca07d48c769b1c1f5526c40ed53820",
        ),
        (
            "aes-256",
            "ecb",
            Plain64,
            None,
            "697af02c1ccd8a439fb3d7d64183b1b4",
            "4cb6e4e71b7e7ec8f6143ffa5759b175",
            "61e142af918c97f83211857f006c13d4dbc845266adbd162bd06f00e656add1f",
        ),
        (
            "cast5-128",
            "cbc",
            Plain64,
            None,
            "7fa15f8066eae75816981be0f6a0765f",
            "d8835dc9b214df30b24f82de101ca5fc",
            "9553ab4cad30c592ccefeaf599d7199c3b4b033116bf88fa4a962b637b57e70c",
        ),
    ];
    let key: Vec<u8> = (1..=32).collect();
    let plain: Vec<u8> = (0..1024u32).map(|i| (i * 7 % 251) as u8).collect();
    for (alg, mode, ivgen, hash, first, last, digest) in cases {
        let name = format!("{alg} {mode} {ivgen}");
        let key = &key[..alg.parse::<CipherAlg>().unwrap().key_bytes()];
        let cipher = cipher(alg, mode, ivgen, hash, key);
        let mut data = plain.clone();
        cipher.encrypt(FIRST, &mut data);
        assert_eq!(hex(&data[..16]), first, "{name}");
        assert_eq!(hex(&data[1008..]), last, "{name}");
        assert_eq!(hex(&kdf::digest(Hash::Sha256, &[&data])), digest, "{name}");
        cipher.decrypt(FIRST, &mut data);
        assert_eq!(data, plain, "{name}");
    }
}

#[test]
fn pbkdf2_is_that_of_rfc_6070_and_of_openssl() {
    let mut out = [0; 20];
    kdf::pbkdf2(Hash::Sha1, b"password", b"salt", 4096, &mut out);
    assert_eq!(hex(&out), "4b007901b765489abead49d926f721d065a429c1");

    let cases = [
        (Hash::Md5, "018652f671967e69a03e57425693cf7279096f1f82173ba1be4c7e3bede7a489"),
        (Hash::Sha1, "16f3a7e6078e9ab0a3ac203ded9e66e1e8d83854ac744b461d872d0fdad69c1d"),
        (Hash::Sha224, "849aa91c84a80c5e55d171884fc51c77a5358d5c6c12144b68affae8e5446f08"),
        (Hash::Sha256, "3161247314e7b6d4d71df16c8176aa41770a080e3ed9c194df960f0ff8897b73"),
        (Hash::Sha384, "0e1410d0b9d1320555c33f526388cfb3db883fdb0354fbaa746ecf03edd9f56e"),
        (Hash::Sha512, "d4fa239e78e19bab821ebac0f49830bc17bb28150459c637c86823c29cea767f"),
        (Hash::Ripemd160, "746712da7ed1966730b07786876390b3e45a980d97acee46d4d21cf1bfdaf14e"),
        (Hash::Sm3, "52adaf5452e1437dcbf83c4fa53bb857307a4e4c7248d3aa326a74af609d0ff1"),
    ];
    assert_eq!(cases.len(), Hash::ALL.len());
    for (hash, expected) in cases {
        let mut out = [0; 32];
        kdf::pbkdf2(hash, b"passwd", b"salt", 80, &mut out);
        assert_eq!(hex(&out), expected, "{hash}");
        assert_eq!(kdf::digest(hash, &[b""]).len(), hash.digest_bytes(), "{hash}");
    }
}

/// Three digests, the last of them cut; two; and one cut digest: by a Python script of the specification's figure.
#[test]
fn stripes_merge_as_specified() {
    let material: Vec<u8> = (0..48 * 5u32).map(|i| (i * 11) as u8).collect();
    let cases = [
        (
            Hash::Sha1,
            "ff5d15f382abba97252ae053626c7585ab18a81d838e5ed46d95cc8098f8d73533b97041356f99d1d7510d818586b12e",
        ),
        (
            Hash::Sha256,
            "2865d97e9427daaeff560b19129d3d20669cda87365a5a32d6eb06d6be33d0ad10f3c83737a3d0fd7cd49d2f9f586c6d",
        ),
        (
            Hash::Sha512,
            "a916ae481d181066b19f3b1458999bfa8c4999cc23a344457ca17a9af52dc044a60f5de80b015ea69d2517196f4f1aa4",
        ),
    ];
    for (hash, expected) in cases {
        assert_eq!(hex(&kdf::merge_stripes(hash, &material, 48)), expected, "{hash}");
    }
}

#[test]
fn the_legacy_key_is_the_secret_cut_or_filled_to_16_bytes() {
    for (secret, key) in [
        (&b"abc"[..], &b"abc\0\0\0\0\0\0\0\0\0\0\0\0\0"[..]),
        (b"0123456789abcdefgh", b"0123456789abcdef"),
        (b"", &[0; 16]),
    ] {
        let mut data = [7; 1024];
        legacy_aes(secret).unwrap().encrypt(5, &mut data);
        cipher("aes-128", "cbc", IvGen::Plain64, None, key).decrypt(5, &mut data);
        assert_eq!(data, [7; 1024]);
    }
}
