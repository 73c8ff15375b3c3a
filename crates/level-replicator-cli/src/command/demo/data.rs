//! Real data for the demo: the files under a directory, or the lines of a file.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;

use crate::command::Failure;

/// Bounds, so that the demo takes seconds wherever it is started.
const FILES_MAX: usize = 3_000;
const FILE_BYTES_MAX: u64 = 128 << 10;
const TOTAL_BYTES_MAX: u64 = 8 << 20;
const LINES_MAX: usize = 50_000;
const LINE_BYTES_MAX: usize = 1_000;
const DEPTH_MAX: usize = 12;

/// Keys and values, in order, and where they come from.
pub(crate) struct Data {
    pub(crate) entries: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) source: String,
}

/// The lines of a file as keys; the value of each says where it stood.
pub(crate) fn from_lines(path: &Path) -> Result<Data, Failure> {
    let explain = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let file = fs::File::open(path).map_err(explain)?;
    let mut entries = Vec::new();
    for (number, line) in BufReader::new(file)
        .split(b'\n')
        .take(LINES_MAX)
        .enumerate()
    {
        let mut key = line.map_err(explain)?;
        if key.last() == Some(&b'\r') {
            key.pop();
        }
        key.truncate(LINE_BYTES_MAX);
        if !key.is_empty() {
            let value = format!("line {} of {}", number + 1, path.display());
            entries.push((key, value.into_bytes()));
        }
    }
    entries.sort();
    entries.dedup_by(|a, b| a.0 == b.0);
    if entries.is_empty() {
        return Err(format!("{} has no lines: give a file with keys", path.display()).into());
    }
    Ok(Data {
        entries,
        source: format!("the lines of {}", path.display()),
    })
}

/// The files under a directory: path as key, content as value. Hidden and build directories, links
/// and large files are left out.
pub(crate) fn from_files(directory: &Path) -> Result<Data, Failure> {
    let mut entries = Vec::new();
    let mut total = 0;
    visit(directory, directory, 0, &mut total, &mut entries);
    entries.sort();
    if entries.len() < 8 {
        return Err(format!(
            "fewer than 8 readable files under {}: start the demo elsewhere, or give --keys FILE",
            directory.display()
        )
        .into());
    }
    Ok(Data {
        entries,
        source: "the files under this directory".to_owned(),
    })
}

fn visit(
    root: &Path,
    directory: &Path,
    depth: usize,
    total: &mut u64,
    entries: &mut Vec<(Vec<u8>, Vec<u8>)>,
) {
    // What cannot be read is not there for the demo.
    let Ok(listing) = fs::read_dir(directory) else {
        return;
    };
    let mut paths: Vec<_> = listing.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let skipped = name.starts_with('.') || name == "target" || name == "node_modules";
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        if skipped || entries.len() >= FILES_MAX {
            continue;
        }
        if metadata.is_dir() && depth < DEPTH_MAX {
            visit(root, &path, depth + 1, total, entries);
            continue;
        }
        let fits = metadata.len() <= FILE_BYTES_MAX && *total + metadata.len() <= TOTAL_BYTES_MAX;
        if !metadata.is_file() || !fits {
            continue;
        }
        let key = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
        if let Ok(content) = fs::read(&path)
            && !key.is_empty()
            && key.len() <= LINE_BYTES_MAX
        {
            *total += content.len() as u64;
            entries.push((key.as_bytes().to_vec(), content));
        }
    }
}
