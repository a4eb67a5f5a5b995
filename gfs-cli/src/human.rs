//! Sizes, times, modes and names as people read and type them.

use gfs_core::meta::request::{FileType, Timestamp};
use std::collections::BTreeMap;

const UNITS: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];

/// `1.5M`, as `ls -h`: powers of 1024, rounded up, one digit after the point below ten.
pub fn size(bytes: u64) -> String {
    let mut unit = 0;
    let mut scale = 1u128;
    let bytes = u128::from(bytes);
    while bytes >= scale * 1024 && unit + 1 < UNITS.len() {
        scale *= 1024;
        unit += 1;
    }
    if unit == 0 {
        return bytes.to_string();
    }
    let tenths = (bytes * 10).div_ceil(scale);
    if tenths < 100 {
        return format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[unit]);
    }
    let whole = bytes.div_ceil(scale);
    if whole == 1024 && unit + 1 < UNITS.len() {
        return format!("1.0{}", UNITS[unit + 1]);
    }
    format!("{whole}{}", UNITS[unit])
}

/// Reads `64M`, `64MiB`, `4096`, `1k`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size such as 4096, 64K, 64M or 1G");
    let upper = text.trim().to_uppercase();
    let digits = upper.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = upper[digits.len()..].trim_end_matches("IB").trim_end_matches('B');
    let power = UNITS.iter().position(|unit| *unit == suffix).ok_or_else(wrong)?;
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1u64.checked_shl(10 * power as u32).ok_or_else(wrong)?).ok_or_else(wrong)
}

/// `1 chunk`, `2 chunks`.
pub fn count(n: u64, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `3d 4h`, `5m 2s`, `0s`: the two largest units.
pub fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let parts = [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let first = parts.iter().position(|(n, _)| *n > 0).unwrap_or(3);
    let shown: Vec<_> = parts[first..].iter().take(2).map(|(n, unit)| format!("{n}{unit}")).collect();
    shown.join(" ")
}

/// The ten characters of `ls -l`.
pub fn mode(file_type: FileType, mode: u16) -> String {
    let mut text = String::with_capacity(10);
    text.push(type_letter(file_type));
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// The letter of a type as `ls -l` has it; `-` is a regular file.
pub fn type_letter(file_type: FileType) -> char {
    match file_type {
        FileType::Fifo => 'p',
        FileType::CharDevice => 'c',
        FileType::Directory => 'd',
        FileType::BlockDevice => 'b',
        FileType::File => '-',
        FileType::Symlink => 'l',
        FileType::Socket => 's',
    }
}

/// The word of a type as `stat` has it.
pub fn type_word(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Fifo => "fifo",
        FileType::CharDevice => "character device",
        FileType::Directory => "directory",
        FileType::BlockDevice => "block device",
        FileType::File => "regular file",
        FileType::Symlink => "symbolic link",
        FileType::Socket => "socket",
    }
}

fn local(seconds: i64) -> libc::tm {
    // SAFETY: tm is plain data, for which all zeros are valid, and both pointers live through the call.
    unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        libc::localtime_r(&seconds, &mut tm);
        tm
    }
}

/// `2026-11-21 07:54:59.123456789 +0100` in local time.
pub fn full_time(time: Timestamp) -> String {
    let (seconds, nanos) = (time.0.div_euclid(1_000_000_000), time.0.rem_euclid(1_000_000_000));
    let tm = local(seconds);
    let offset = tm.tm_gmtoff / 60;
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{nanos:09} {}{:02}{:02}",
        tm.tm_year + 1900,
        tm.tm_mon + 1,
        tm.tm_mday,
        tm.tm_hour,
        tm.tm_min,
        tm.tm_sec,
        if offset < 0 { '-' } else { '+' },
        offset.abs() / 60,
        offset.abs() % 60
    )
}

/// `Nov 21 07:54`, or `Nov 21  2025` when it is more than half a year away from `now`, as `ls -l`.
pub fn short_time(time: Timestamp, now: Timestamp) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    const HALF_YEAR_S: i64 = 15_778_476;
    let seconds = time.0.div_euclid(1_000_000_000);
    let tm = local(seconds);
    let month = usize::try_from(tm.tm_mon).ok().and_then(|m| MONTHS.get(m)).unwrap_or(&"???");
    let age = now.0.div_euclid(1_000_000_000) - seconds;
    if (0..HALF_YEAR_S).contains(&age) {
        format!("{month} {:>2} {:02}:{:02}", tm.tm_mday, tm.tm_hour, tm.tm_min)
    } else {
        format!("{month} {:>2}  {}", tm.tm_mday, tm.tm_year + 1900)
    }
}

/// The present.
pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// A name fit for a terminal: control characters and broken UTF-8 become `?`.
pub fn name(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() || c == '\u{fffd}' { '?' } else { c }).collect()
}

/// Names of users or groups by number, from a file in the form of /etc/passwd. What is not there is shown as a number.
#[derive(Clone, Debug, Default)]
pub struct Names(BTreeMap<u32, String>);

impl Names {
    /// From /etc/passwd or /etc/group; unreadable is empty.
    pub fn read(path: &str) -> Self {
        std::fs::read_to_string(path).map(|text| Self::parse(&text)).unwrap_or_default()
    }

    fn parse(text: &str) -> Self {
        let entry = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_string();
            Some((fields.nth(1)?.parse().ok()?, name))
        };
        Self(text.lines().filter_map(entry).collect())
    }

    /// The name, or the number.
    pub fn get(&self, id: u32) -> String {
        self.0.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_as_ls_does() {
        let table = [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0K"),
            (1025, "1.1K"),
            (10 << 10, "10K"),
            ((1 << 20) - 1, "1.0M"),
            (1 << 20, "1.0M"),
            (3 << 29, "1.5G"),
            (u64::MAX, "16E"),
        ];
        for (bytes, text) in table {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn typed_sizes_are_read_or_refused() {
        for (text, bytes) in [("4096", 4096), ("64M", 64 << 20), ("1k", 1024), ("2GiB", 2 << 30), ("5b", 5)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "1.5M", "-1", "64X", "99999999999E"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn modes_show_special_bits() {
        assert_eq!(mode(FileType::File, 0o644), "-rw-r--r--");
        assert_eq!(mode(FileType::Directory, 0o1777), "drwxrwxrwt");
        assert_eq!(mode(FileType::File, 0o4755), "-rwsr-xr-x");
        assert_eq!(mode(FileType::File, 0o2644), "-rw-r-Sr--");
    }

    #[test]
    fn durations_keep_two_units() {
        assert_eq!(duration(999), "0s");
        assert_eq!(duration(61_000), "1m 1s");
        assert_eq!(duration(90_061_000), "1d 1h");
    }

    #[test]
    fn names_come_from_passwd_lines_and_others_stay_numbers() {
        let names = Names::parse("root:x:0:0:root:/root:/bin/sh\nbroken\nalice:x:1000:1000::/:/bin/sh\n");
        assert_eq!((names.get(0), names.get(1000), names.get(7)), ("root".into(), "alice".into(), "7".into()));
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(name(b"a\x1b[31m\n\xff"), "a?[31m??");
    }

    #[test]
    fn old_times_show_the_year() {
        let now = Timestamp(1_800_000_000_000_000_000);
        assert!(short_time(now, now).contains(':'));
        assert!(!short_time(Timestamp(0), now).contains(':'));
    }

    #[test]
    fn hexadecimal_digits_are_those_of_sha256sum() {
        assert_eq!(hex(&[0, 0x0a, 0xff]), "000aff");
    }
}
