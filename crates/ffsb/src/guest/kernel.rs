//! The kernel that guests boot, and where one is found.

use super::{GuestError, files};
use std::path::{Path, PathBuf};

/// How a kernel is got where there is none.
const HOW: &str = "`cargo xtask setup` gets one in the source tree; elsewhere `apt-get download` the package that \
     linux-image-cloud-amd64 depends on, `dpkg -x` it into a directory, and say FERROBLK_GUEST=DIRECTORY";

/// A kernel with its modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// The directory with its modules, as `/lib/modules/VERSION`.
    pub modules: PathBuf,
}

impl Kernel {
    /// The kernel at `image` with its `modules`, as far as they are given.
    ///
    /// Where the image is not: the newest that can be read in the directory `$FERROBLK_GUEST` (with `boot/vmlinuz-VERSION` and
    /// `lib/modules/VERSION`), else in the source tree's `target/guest`, so that figures of one source tree are of one kernel, else
    /// in `/`. Modules that are not given are looked for beside the image.
    ///
    /// # Errors
    ///
    /// There is none; the line says how to get one.
    pub fn find(image: Option<&Path>, modules: Option<&Path>) -> Result<Kernel, GuestError> {
        if let Some(image) = image {
            return Kernel::given(image, modules);
        }
        let given = std::env::var_os("FERROBLK_GUEST").map(PathBuf::from);
        let roots = match given {
            Some(root) => vec![root],
            None => vec![source_tree().join("target/guest"), PathBuf::from("/")],
        };
        for root in &roots {
            if let Some(found) = newest(root) {
                let modules = modules.map_or(found.modules, Path::to_path_buf);
                return Ok(Kernel { image: found.image, modules });
            }
        }
        let places: Vec<String> = roots.iter().map(|root| root.display().to_string()).collect();
        Err(GuestError::missing(format!(
            "there is no kernel for the guest that can be read, with its modules, under {}: {HOW}",
            places.join(" or ")
        )))
    }

    fn given(image: &Path, modules: Option<&Path>) -> Result<Kernel, GuestError> {
        if !files::is_readable(image) {
            let image = image.display();
            return Err(GuestError::missing(format!("the guest's kernel {image} cannot be read")));
        }
        let beside = || {
            let version = version_of(image)?;
            let root = image.parent()?.parent()?;
            Some(modules_of(root, version))
        };
        let modules = modules.map(Path::to_path_buf).or_else(beside);
        match modules {
            Some(modules) if modules.is_dir() => Ok(Kernel { image: image.into(), modules }),
            Some(modules) => Err(GuestError::missing(format!(
                "the modules of the guest's kernel: {} is not a directory",
                modules.display()
            ))),
            None => Err(GuestError::missing(format!(
                "the guest's kernel {}: where its modules are must be said too",
                image.display()
            ))),
        }
    }
}

fn source_tree() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

fn version_of(image: &Path) -> Option<&str> {
    image.file_name()?.to_str()?.strip_prefix("vmlinuz-")
}

fn modules_of(root: &Path, version: &str) -> PathBuf {
    root.join("lib/modules").join(version)
}

/// The newest kernel under `root` that can be read and has modules.
fn newest(root: &Path) -> Option<Kernel> {
    let entries = std::fs::read_dir(root.join("boot")).ok()?;
    let images = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let found = images.filter_map(|image| {
        let version = version_of(&image)?.to_owned();
        let modules = modules_of(root, &version);
        let usable = modules.is_dir() && files::is_readable(&image);
        usable.then(|| (order(&version), Kernel { image, modules }))
    });
    found.max_by(|a, b| a.0.cmp(&b.0)).map(|(_, kernel)| kernel)
}

/// The numbers of a version, so that 6.10 is newer than 6.9.
fn order(version: &str) -> Vec<u64> {
    let parts = version.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    parts.map(|part| part.parse().unwrap_or(u64::MAX)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(versions: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("boot")).unwrap();
        for version in versions {
            let image = root.path().join(format!("boot/vmlinuz-{version}"));
            files::write(&image, b"kernel").unwrap();
            std::fs::create_dir_all(modules_of(root.path(), version)).unwrap();
        }
        root
    }

    #[test]
    fn the_newest_with_modules_is_taken() {
        let root = root(&["6.9.0-1-amd64", "6.10.0-2-amd64", "6.12.1-amd64"]);
        std::fs::remove_dir_all(modules_of(root.path(), "6.12.1-amd64")).unwrap();
        let kernel = newest(root.path()).unwrap();
        assert!(kernel.image.ends_with("boot/vmlinuz-6.10.0-2-amd64"), "{kernel:?}");
        assert!(kernel.modules.ends_with("lib/modules/6.10.0-2-amd64"), "{kernel:?}");
        assert_eq!(newest(&root.path().join("none")), None);
    }

    #[test]
    fn modules_are_looked_for_beside_the_image() {
        let root = root(&["6.1.0"]);
        let image = root.path().join("boot/vmlinuz-6.1.0");
        let kernel = Kernel::find(Some(&image), None).unwrap();
        assert_eq!(kernel.modules, modules_of(root.path(), "6.1.0"));
        let other = root.path().join("bzImage");
        files::write(&other, b"kernel").unwrap();
        let why = Kernel::find(Some(&other), None).unwrap_err().to_string();
        assert!(why.contains("bzImage") && why.contains("modules"), "{why}");
        let given = Kernel::find(Some(&other), Some(root.path())).unwrap();
        assert_eq!(given.modules, root.path());
        let why = Kernel::find(Some(&root.path().join("none")), None).unwrap_err().to_string();
        assert!(why.contains("none cannot be read"), "{why}");
    }
}
