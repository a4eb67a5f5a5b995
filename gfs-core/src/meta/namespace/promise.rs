//! Bytes of a file that fallocate(2) has promised: they count as stored, though nothing is, until they are punched out or cut off.
//!
//! One range a file: programs allocate from one end to the other. Of ranges that do not touch, the longest is kept.

use crate::meta::request::{Space, Stored};

/// A range of bytes, `start .. end`; empty where nothing is promised.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Promise {
    pub start: u64,
    pub end: u64,
}

impl Promise {
    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// What it counts for: whole blocks.
    pub fn bytes(self) -> u64 {
        let start = self.start / Stored::BLOCK * Stored::BLOCK;
        if self.is_empty() { 0 } else { (self.end - start).next_multiple_of(Stored::BLOCK) }
    }

    /// After space was promised or given back.
    pub fn after(self, space: Space) -> Self {
        let other = Self { start: space.from, end: space.to };
        if other.is_empty() {
            return self;
        }
        if !space.promised {
            let before = Self { end: self.end.min(other.start), ..self };
            let behind = Self { start: self.start.max(other.end), ..self };
            return before.longer(behind);
        }
        let touch = !self.is_empty() && self.start <= other.end && other.start <= self.end;
        let both = Self { start: self.start.min(other.start), end: self.end.max(other.end) };
        if touch { both } else { self.longer(other) }
    }

    /// After the file was cut to a size.
    pub fn cut(self, size: u64) -> Self {
        Self { end: self.end.min(size), ..self }.longer(Self::default())
    }

    /// The longer of two, the first if they are equal.
    fn longer(self, other: Self) -> Self {
        let length = |of: Self| of.end.saturating_sub(of.start);
        match length(self).max(length(other)) {
            0 => Self::default(),
            most if most == length(self) => self,
            _ => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promise(start: u64, end: u64) -> Promise {
        Promise { start, end }
    }

    fn promised(from: u64, to: u64) -> Space {
        Space { from, to, promised: true }
    }

    fn released(from: u64, to: u64) -> Space {
        Space { from, to, promised: false }
    }

    #[test]
    fn ranges_that_touch_become_one_and_of_others_the_longest_stays() {
        let first = Promise::default().after(promised(10, 20));
        assert_eq!(first, promise(10, 20));
        assert_eq!(first.after(promised(20, 25)), promise(10, 25));
        assert_eq!(first.after(promised(5, 12)), promise(5, 20));
        assert_eq!(first.after(promised(30, 40)), first);
        assert_eq!(first.after(promised(30, 41)), promise(30, 41));
        assert_eq!(first.after(promised(15, 15)), first);
    }

    #[test]
    fn holes_and_cuts_take_their_part() {
        let first = promise(10, 20);
        assert_eq!(first.after(released(0, 10)), first);
        assert_eq!(first.after(released(20, 90)), first);
        assert_eq!(first.after(released(0, 12)), promise(12, 20));
        assert_eq!(first.after(released(12, 13)), promise(13, 20));
        assert_eq!(first.after(released(18, 19)), promise(10, 18));
        assert_eq!(first.after(released(10, 20)), Promise::default());
        assert_eq!((first.cut(15), first.cut(30), first.cut(10)), (promise(10, 15), first, Promise::default()));
    }

    #[test]
    fn whole_blocks_count() {
        assert_eq!([promise(0, 0), promise(5, 6), promise(4095, 4097)].map(Promise::bytes), [0, 4096, 8192]);
    }
}
