//! Cutting a range of a file into chunks, and those into pieces. Pure arithmetic.

use super::PIECE;

/// A part of a range that lies within one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    /// The chunk's place in the file.
    pub(crate) index: u32,
    /// Where it starts in the chunk.
    pub(crate) offset: u64,
    /// Its length, never 0.
    pub(crate) length: u64,
    /// Where it starts in the range.
    pub(crate) at: u64,
}

impl Span {
    /// The span in parts of at most [`PIECE`]. Several do not cross a multiple of it, so that whole blocks stay whole.
    pub(crate) fn pieces(self) -> impl Iterator<Item = Span> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let offset = self.offset + done;
            let length = match self.length {
                ..=PIECE => self.length - done,
                _ => (PIECE - offset % PIECE).min(self.length - done),
            };
            let piece = Span { offset, length, at: self.at + done, ..self };
            done += length;
            (length > 0).then_some(piece)
        })
    }
}

/// The chunk at an offset. The caller has checked that a file can be so long.
pub(crate) fn index_of(offset: u64, chunk_size: u64) -> u32 {
    u32::try_from(offset / chunk_size).unwrap_or(u32::MAX)
}

/// `offset .. offset + length` chunk by chunk.
pub(crate) fn spans(offset: u64, length: u64, chunk_size: u64) -> impl Iterator<Item = Span> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let from = offset + done;
        let inside = from % chunk_size;
        let part = (chunk_size - inside).min(length - done);
        let span = Span { index: index_of(from, chunk_size), offset: inside, length: part, at: done };
        done += part;
        (part > 0).then_some(span)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_at_chunk_borders() {
        let cut: Vec<Span> = spans(90, 120, 100).collect();
        let expected = [
            Span { index: 0, offset: 90, length: 10, at: 0 },
            Span { index: 1, offset: 0, length: 100, at: 10 },
            Span { index: 2, offset: 0, length: 10, at: 110 },
        ];
        assert_eq!(cut, expected);
        assert_eq!(spans(50, 0, 100).count(), 0);
        assert_eq!(spans(100, 100, 100).collect::<Vec<_>>(), [Span { index: 1, offset: 0, length: 100, at: 0 }]);
    }

    #[test]
    fn a_span_is_cut_at_multiples_of_a_piece() {
        let span = Span { index: 3, offset: PIECE - 10, length: PIECE + 20, at: 5 };
        let cut: Vec<(u64, u64, u64)> = span.pieces().map(|p| (p.offset, p.length, p.at)).collect();
        assert_eq!(cut, [(PIECE - 10, 10, 5), (PIECE, PIECE, 15), (2 * PIECE, 10, 15 + PIECE)]);
        let short = Span { length: PIECE, ..span };
        assert_eq!(short.pieces().collect::<Vec<_>>(), [short]);
    }

    #[test]
    fn pieces_of_any_range_cover_it_once_and_in_order() {
        let mut state = 12345_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..200 {
            let chunk_size = 1 << (16 + random(10));
            let (offset, length) = (random(1 << 30), random(1 << 24));
            let mut next = 0;
            for span in spans(offset, length, chunk_size) {
                assert!(span.offset + span.length <= chunk_size);
                for piece in span.pieces() {
                    assert_eq!(piece.at, next);
                    assert_eq!(u64::from(piece.index) * chunk_size + piece.offset, offset + next);
                    assert!((1..=PIECE).contains(&piece.length));
                    next += piece.length;
                }
            }
            assert_eq!(next, length);
        }
    }
}
