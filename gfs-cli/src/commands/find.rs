//! `gfs find [PATH...] [-name PATTERN] [-type f|d|l]`

use super::walk;
use crate::output;
use crate::remote::{Remote, cluster_paths};
use anyhow::Result;
use gfs_core::meta::request::FileType;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Arguments of `gfs find`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only names that match: * ? [a-z]
    #[arg(long, value_name = "PATTERN")]
    name: Option<OsString>,
    /// Only files (f), directories (d) or links (l)
    #[arg(long = "type", value_name = "TYPE", value_parser = ["f", "d", "l", "p", "s", "b", "c"])]
    kind: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Paths of the cluster
    #[arg(default_value = "/", value_parser = cluster_paths())]
    paths: Vec<PathBuf>,
}

/// Prints what matches, one path a line, as it is found.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    let mut json = Vec::new();
    for path in &args.paths {
        walk::walk(remote, path, |found| {
            let name = found.path.file_name().unwrap_or(found.path.as_os_str());
            let named = args.name.as_ref().is_none_or(|pattern| matches(pattern.as_bytes(), name.as_bytes()));
            let typed = args.kind.as_ref().is_none_or(|kind| *kind == letter(found.attributes.file_type));
            if !(named && typed) {
                return Ok(());
            }
            if args.json {
                json.push(found.path.display().to_string());
                return Ok(());
            }
            output::line(found.path.display())
        })
        .await?;
    }
    if args.json { output::json(&json) } else { Ok(()) }
}

fn letter(file_type: FileType) -> String {
    match crate::human::type_letter(file_type) {
        '-' => "f".into(),
        other => other.to_string(),
    }
}

/// Shell pattern: `*`, `?`, `[abc]`, `[!a-z]`, `\x`. Linear in practice: only the last `*` is tried again.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match one(&pattern[p..], text[t]) {
            Some(used) if pattern.get(p) != Some(&b'*') => {
                p += used;
                t += 1;
            }
            _ if pattern.get(p) == Some(&b'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            _ => match star {
                Some((after, from)) => {
                    star = Some((after, from + 1));
                    (p, t) = (after, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Bytes of the pattern that match this one byte.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [b'[', rest @ ..] => {
            let negated = matches!(rest.first(), Some(b'!' | b'^'));
            let from = usize::from(negated);
            // A `]` right at the start stands for itself.
            let Some(end) = rest.iter().skip(from + 1).position(|b| *b == b']').map(|at| at + from + 1) else {
                return (byte == b'[').then_some(1);
            };
            (in_class(&rest[from..end], byte) != negated).then_some(end + 2)
        }
        [plain, ..] => (*plain == byte).then_some(1),
        [] => None,
    }
}

fn in_class(mut class: &[u8], byte: u8) -> bool {
    while let Some((first, rest)) = class.split_first() {
        match rest {
            [b'-', last, after @ ..] => {
                if (*first..=*last).contains(&byte) {
                    return true;
                }
                class = after;
            }
            _ => {
                if *first == byte {
                    return true;
                }
                class = rest;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_the_shell() {
        let yes = [
            ("*", ""),
            ("*.rs", "a.rs"),
            ("a*b*c", "axxbyyc"),
            ("?", "x"),
            ("[a-c]x", "bx"),
            ("[!a]", "b"),
            ("\\*", "*"),
            ("[]]", "]"),
            ("[", "["),
            ("a**", "a"),
        ];
        for (pattern, text) in yes {
            assert!(matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
        let no = [("*.rs", "a.rsx"), ("?", ""), ("[a-c]", "d"), ("[!a]", "a"), ("\\*", "x"), ("", "a"), ("ab", "a")];
        for (pattern, text) in no {
            assert!(!matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_end_soon() {
        assert!(!matches(&b"*a".repeat(200), &b"a".repeat(199).iter().copied().chain(*b"b").collect::<Vec<_>>()));
    }
}
