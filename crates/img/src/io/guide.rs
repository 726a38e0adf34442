//! What `help COMMAND` explains.

/// The text for a command, if there is more to say of it than its line.
pub(super) fn of(name: &str) -> Option<&'static str> {
    Some(match name {
        "read" => READ,
        "readv" => READV,
        "aio_read" => AIO_READ,
        "write" => WRITE,
        "writev" => WRITEV,
        "aio_write" => AIO_WRITE,
        "discard" => DISCARD,
        "open" => OPEN,
        "reopen" => REOPEN,
        "sigraise" => SIGRAISE,
        _ => return None,
    })
}

const READ: &str = " 'read -v 512 1k' shows the 1024 bytes that begin at byte 512 of the disk.

 Sizes take a suffix k, M, G, T, P or E, or are hexadecimal (0x200). Any byte may
 be the first and any the last.
 -b, -- the state of a virtual machine instead of the disk (not supported)
 -C, -- the result in one line: bytes,requests,time,bytes/s,requests/s
 -l, -- compare so many bytes only (with -P)
 -p, -- no effect
 -P, -- all bytes must be this one; if not, the command fails
 -q, -- print no result
 -r, -- no effect
 -s, -- compare from this byte of the data on (with -P)
 -v, -- show the data
";

const READV: &str =
    " 'readv -v 512 1k 1k' reads 2048 bytes at 512 into two buffers, and shows them.

 -C, -- the result in one line: bytes,requests,time,bytes/s,requests/s
 -P, -- all bytes must be this one; if not, the command fails
 -q, -- print no result
 -r, -- no effect
 -v, -- show the data
";

const AIO_READ: &str =
    " 'aio_read -v 512 1k 1k' starts to read 2048 bytes at 512, and does not wait.

 The result is printed when the request has ended; 'aio_flush' waits for it. The
 command succeeds even if the request fails later, or reads other data than -P.
 -C, -- the result in one line: bytes,requests,time,bytes/s,requests/s
 -i, -- no request, but one that counts as invalid
 -P, -- all bytes must be this one
 -q, -- print no result
 -r, -- no effect
 -v, -- show the data
";

const WRITE: &str =
    " 'write -P 5 512 1k' writes 1024 bytes 5 at byte 512 of the disk; without -P, -s
 and -z they are 0xcd.

 -b, -- the state of a virtual machine instead of the disk (not supported)
 -c, -- compressed, in whole clusters that have no data yet (qcow2)
 -C, -- the result in one line: bytes,requests,time,bytes/s,requests/s
 -f, -- durably (force unit access)
 -n, -- with -z: fail rather than write data
 -p, -- no effect
 -P, -- the byte that is written
 -q, -- print no result
 -r, -- no effect
 -s, -- the data of this file, over and over
 -u, -- with -z: space may be given back
 -z, -- zeroes, without data where the image can say so
";

const WRITEV: &str = " 'writev 512 1k 1k' writes 2048 bytes at 512 from two buffers.

 -C, -- the result in one line: bytes,requests,time,bytes/s,requests/s
 -f, -- durably (force unit access)
 -P, -- the byte that is written, if not 0xcd
 -q, -- print no result
 -r, -- no effect
";

const AIO_WRITE: &str =
    " 'aio_write 512 1k 1k' starts to write 2048 bytes at 512, and does not wait.

 The result is printed when the request has ended; 'aio_flush' waits for it. The
 command succeeds even if the request fails later.
 -C, -- the result in one line: bytes,requests,time,bytes/s,requests/s
 -f, -- durably (force unit access)
 -i, -- no request, but one that counts as invalid
 -P, -- the byte that is written, if not 0xcd
 -q, -- print no result
 -r, -- no effect
 -u, -- with -z: space may be given back
 -z, -- zeroes, without data where the image can say so
";

const DISCARD: &str = " 'discard 512 1k' tells that the 1024 bytes at 512 are not needed any more.

 Images with clusters give back whole ones, and leave the rest as it is.
 -C, -- the result in one line: bytes,requests,time,bytes/s,requests/s
 -q, -- print no result
";

const OPEN: &str =
    " 'open -n -o driver=raw /tmp/data' opens a raw image for writing, past the page cache.

 -r, -- not for writing
 -s, -- keep aside what is written, and drop it in the end
 -C, -- copy on read (not supported)
 -n, -- as -t none
 -U, -- while others may write to it (with -r)
 -k, -- as -i native
 -i, -- what does the I/O: threads, native or io_uring
 -t, -- cache mode: none, writeback, writethrough, directsync or unsafe
 -d, -- what discards do: unmap or ignore
 -o, -- options of the image: driver=FMT, encrypt.key-secret=ID
";

const REOPEN: &str = " 'reopen -r' goes on with the same image, but does not write to it any more.

 -r, -- not for writing
 -w, -- for writing
 -c, -- with this cache mode
 -o, -- with other options of the image (not supported)
";

const SIGRAISE: &str = " 'sigraise 15' ends this program by SIGTERM, without closing the image.
";
