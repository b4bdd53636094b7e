//! Shortening an overlay's options.

use std::path::{Path, PathBuf};

/// Options that name directories.
const DIRECTORIES: [&str; 3] = ["lowerdir=", "upperdir=", "workdir="];

/// The directory that all named ones have in common, and the options with paths relative to it. Options without
/// absolute directories stay as they are; the directory is `/` then.
pub(super) fn relative(options: &[String]) -> (PathBuf, String) {
    let base = options.iter().flat_map(|option| directories(option)).fold(None, common).unwrap_or_default();
    if !base.is_absolute() || base.parent().is_none() {
        return ("/".into(), options.join(","));
    }
    let shortened: Vec<String> = options.iter().map(|option| shorten(option, &base)).collect();
    (base, shortened.join(","))
}

fn split(option: &str) -> Option<(&str, &str)> {
    let name = DIRECTORIES.iter().find(|name| option.starts_with(**name))?;
    Some(option.split_at(name.len()))
}

fn directories(option: &str) -> Vec<&Path> {
    split(option).map(|(_, paths)| paths.split(':').map(Path::new).collect()).unwrap_or_default()
}

/// The parent counts, not the directory itself: its name has to stay.
fn common(so_far: Option<PathBuf>, next: &Path) -> Option<PathBuf> {
    let next = next.parent().unwrap_or(Path::new(""));
    let Some(so_far) = so_far else { return Some(next.to_owned()) };
    let same = so_far.components().zip(next.components()).take_while(|(a, b)| a == b);
    Some(same.map(|(component, _)| component).collect())
}

fn shorten(option: &str, base: &Path) -> String {
    let Some((name, paths)) = split(option) else { return option.to_owned() };
    let short = |path: &str| match Path::new(path).strip_prefix(base) {
        Ok(rest) => rest.to_string_lossy().into_owned(),
        Err(_other) => path.to_owned(),
    };
    let paths: Vec<String> = paths.split(':').map(short).collect();
    format!("{name}{}", paths.join(":"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Vec<String> {
        text.split(',').map(str::to_owned).collect()
    }

    #[test]
    fn directories_become_relative_to_what_they_share() {
        let given = options(
            "index=off,lowerdir=/s/io/snap/1/fs:/s/io/snap/22/fs,upperdir=/s/io/snap/3/fs,workdir=/s/io/snap/3/work",
        );
        let (base, text) = relative(&given);
        assert_eq!(base, Path::new("/s/io/snap"));
        assert_eq!(text, "index=off,lowerdir=1/fs:22/fs,upperdir=3/fs,workdir=3/work");
    }

    #[test]
    fn nothing_in_common_changes_nothing() {
        for given in ["lowerdir=/a:/b,upperdir=/c/d", "lowerdir=a:b", "index=off"] {
            assert_eq!(relative(&options(given)), ("/".into(), given.to_owned()));
        }
    }
}
