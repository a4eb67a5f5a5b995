//! Standard output: text, tables, JSON and progress, and what happens when nobody reads it any more.

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::{IsTerminal, Write};

/// The reader of standard output has gone.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub struct OutputClosed;

/// Whether the command failed because the reader of its output went away.
pub fn is_closed(error: &anyhow::Error) -> bool {
    error.is::<OutputClosed>()
}

/// Turns the error of a write to standard output into ours.
pub fn written(result: std::io::Result<()>) -> anyhow::Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        Err(error) => Err(anyhow::Error::new(error).context("cannot write to standard output")),
    }
}

/// Prints one line.
pub fn line(text: impl std::fmt::Display) -> anyhow::Result<()> {
    written(writeln!(std::io::stdout().lock(), "{text}"))
}

/// Prints a value as indented JSON.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Whether standard output is a terminal.
pub fn on_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Columns of the terminal; 80 when unknown.
pub fn width() -> usize {
    // SAFETY: winsize is plain data, for which zeros are valid, and the pointer lives through the call.
    let size = unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        (libc::ioctl(1, libc::TIOCGWINSZ, &mut size) == 0).then_some(size)
    };
    size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0).unwrap_or(80)
}

/// Rows of text with aligned columns, two spaces between; a column named in `right` is aligned to the right.
pub fn table(rows: &[Vec<String>], right: &[usize]) -> anyhow::Result<()> {
    written(std::io::stdout().lock().write_all(table_text(rows, right).as_bytes()))
}

fn table_text(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut shown = String::new();
        for (c, cell) in row.iter().enumerate() {
            let gap = " ".repeat(widths[c] - cell.chars().count());
            if c > 0 {
                shown.push_str("  ");
            }
            if right.contains(&c) {
                shown.push_str(&gap);
                shown.push_str(cell);
            } else {
                shown.push_str(cell);
                shown.push_str(&gap);
            }
        }
        text.push_str(shown.trim_end());
        text.push('\n');
    }
    text
}

/// Names in columns down the page, as `ls` on a terminal of `width`.
pub fn columns(names: &[String], width: usize) -> String {
    let widest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0) + 2;
    let across = (width / widest).max(1);
    let down = names.len().div_ceil(across);
    let mut text = String::new();
    for row in 0..down {
        let cells: Vec<_> = names.iter().skip(row).step_by(down).collect();
        for (i, name) in cells.iter().enumerate() {
            text.push_str(name);
            if i + 1 < cells.len() {
                text.push_str(&" ".repeat(widest - name.chars().count()));
            }
        }
        text.push('\n');
    }
    text
}

/// A progress bar on standard error, if that is a terminal; hidden otherwise.
pub fn progress(what: &str, total: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}"),
        None => (ProgressBar::new_spinner(), "{msg} {spinner} {bytes} {bytes_per_sec}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what.to_string());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_aligns_and_leaves_no_trailing_space() {
        let rows = vec![vec!["a".into(), "100".into(), "x".into()], vec!["bbb".into(), "7".into(), String::new()]];
        assert_eq!(table_text(&rows, &[1]), "a    100  x\nbbb    7\n");
    }

    #[test]
    fn columns_go_down_first_and_keep_every_name() {
        let names: Vec<String> = ["a", "bb", "c", "d", "e"].iter().map(|s| s.to_string()).collect();
        assert_eq!(columns(&names, 8), "a   d\nbb  e\nc\n");
        assert_eq!(columns(&names, 1), "a\nbb\nc\nd\ne\n");
        assert_eq!(columns(&[], 80), "");
    }

    #[test]
    fn closed_output_is_recognized_through_the_error() {
        let error = written(Err(std::io::ErrorKind::BrokenPipe.into())).unwrap_err();
        assert!(is_closed(&error));
        assert!(!is_closed(&written(Err(std::io::ErrorKind::StorageFull.into())).unwrap_err()));
    }
}
