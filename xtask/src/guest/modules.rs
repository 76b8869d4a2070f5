//! Which kernel modules to take, and in which order to load them.
//!
//! A Debian package has no `modules.dep` (depmod writes it on installation), so the dependencies are read where depmod reads
//! them: in each module's `.modinfo`, as `depends=a,b`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, FileContext, Result};

/// The modules of a package, by name with underscores.
pub(super) struct Available {
    files: BTreeMap<String, PathBuf>,
}

/// A module, ready to load.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Module {
    /// Its file name without a compression's extension.
    pub(super) file_name: String,
    /// Its ELF file.
    pub(super) bytes: Vec<u8>,
}

impl Available {
    /// Finds every module below a directory.
    pub(super) fn below(directory: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        collect(directory, &mut files)?;
        Ok(Self { files })
    }

    /// The wanted modules with all they depend on, dependencies first. One that is not there is built into the kernel.
    pub(super) fn in_load_order(
        &self,
        wanted: &[&str],
        decompress: &impl Fn(&Path) -> Result<Vec<u8>>,
    ) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        let mut seen = Vec::new();
        for name in wanted {
            self.add(name, decompress, &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn add(
        &self,
        name: &str,
        decompress: &impl Fn(&Path) -> Result<Vec<u8>>,
        seen: &mut Vec<String>,
        order: &mut Vec<Module>,
    ) -> Result<()> {
        let name = name.replace('-', "_");
        if seen.contains(&name) {
            return Ok(());
        }
        seen.push(name.clone());
        let Some(path) = self.files.get(&name) else { return Ok(()) };
        let bytes = decompress(path)?;
        for dependency in depends(&bytes) {
            self.add(&dependency, decompress, seen, order)?;
        }
        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some((stem, _)) = file_name.split_once(".ko") else {
            return Err(Error::Advice(format!("{} is no module", path.display())));
        };
        order.push(Module { file_name: format!("{stem}.ko"), bytes });
        Ok(())
    }
}

fn collect(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory).file("list", directory)? {
        let entry = entry.file("list", directory)?;
        let path = entry.path();
        if entry.file_type().file("look at", &path)?.is_dir() {
            collect(&path, files)?;
        } else if let Some((stem, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            files.insert(stem.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// The names in the `depends=` string of a module. `.modinfo` is a list of zero-terminated `key=value` strings.
fn depends(module: &[u8]) -> Vec<String> {
    let value = module.split(|byte| *byte == 0).find_map(|string| string.strip_prefix(b"depends="));
    let value = String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
    value.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn available(names: &[&str]) -> Available {
        Available {
            files: names.iter().map(|name| (name.replace('-', "_"), format!("/m/{name}.ko.xz").into())).collect(),
        }
    }

    /// Every `*-front` depends on `ring`, everything else on nothing.
    fn fake(path: &Path) -> Result<Vec<u8>> {
        let front = path.to_string_lossy().contains("-front");
        Ok(if front { b"\0license=GPL\0depends=ring,builtin\0".to_vec() } else { b"depends=\0".to_vec() })
    }

    #[test]
    fn a_dependency_comes_before_what_needs_it_and_only_once() {
        let available = available(&["rng-front", "nsm-front", "ring"]);
        let order = available.in_load_order(&["rng_front", "nsm-front"], &fake).expect("an order");
        let names: Vec<&str> = order.iter().map(|module| module.file_name.as_str()).collect();
        assert_eq!(names, ["ring.ko", "rng-front.ko", "nsm-front.ko"]);
    }

    #[test]
    fn a_module_that_is_not_there_is_taken_for_built_in() {
        let order = available(&[]).in_load_order(&["virtio_mmio"], &fake).expect("an order");
        assert_eq!(order, []);
    }
}
