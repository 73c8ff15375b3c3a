//! The inputs that once found something: one file each, in a folder for each target.

use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

/// The folder of a target.
pub fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target)
}

/// All inputs kept for a target with their files, in the order of names.
///
/// # Errors
///
/// If a file cannot be read. A folder that is not there holds nothing.
pub fn load(target: &str) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let entries = match std::fs::read_dir(folder(target)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<PathBuf>>>()?;
    paths.sort();
    let read = |path: PathBuf| {
        let input = std::fs::read(&path)?;
        Ok((path, input))
    };
    paths.into_iter().map(read).collect()
}

/// Keeps an input; its name is made of what is in it.
///
/// # Errors
///
/// If the file cannot be written.
pub fn keep(target: &str, input: &[u8]) -> io::Result<PathBuf> {
    let folder = folder(target);
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("finding-{:08x}", xxh3_64(input) as u32));
    std::fs::write(&path, input)?;
    Ok(path)
}
