//! Reading a log back: what counts, what is a torn tail, and what is damage.
//!
//! A frame that cannot be read ends the log, if it is in the last segment and no valid frame after it says that the
//! place was on stable storage. Otherwise something promised is damaged, and the log refuses to open: cutting there
//! would lose what follows.

use crate::error::LogError;
use crate::frame::{self, FrameHeader, HEADER, MARK};
use crate::log::{Position, Record};
use crate::segment::Segment;

/// Bytes read at once.
const WINDOW: usize = 1 << 20;

/// Reads a segment from a position on, through one buffer.
struct Cursor<'a> {
    segment: &'a Segment,
    buffer: Vec<u8>,
    /// Position of the buffer's first byte.
    start: u64,
}

impl<'a> Cursor<'a> {
    fn new(segment: &'a Segment) -> Self {
        Self { segment, buffer: Vec::new(), start: segment.base }
    }

    /// `length` bytes at a position, fewer only at the end of the segment.
    fn bytes(&mut self, position: u64, length: usize) -> Result<&[u8], LogError> {
        let have = self.start + self.buffer.len() as u64;
        if position < self.start || position + length as u64 > have {
            let room = self.segment.limit().saturating_sub(position);
            self.buffer.resize(room.min(length.max(WINDOW) as u64) as usize, 0);
            let got = self.segment.read(position, &mut self.buffer)?;
            self.buffer.truncate(got);
            self.start = position;
        }
        let at = (position - self.start) as usize;
        let end = (at + length).min(self.buffer.len());
        Ok(&self.buffer[at.min(end)..end])
    }

    /// The frame at a position, with its payload, if there is a valid one.
    fn frame(&mut self, log: u64, position: u64) -> Result<Option<(FrameHeader, Vec<u8>)>, LogError> {
        let room = self.segment.limit().saturating_sub(position);
        let Some(header) = frame::decode(self.bytes(position, HEADER)?, position) else {
            return Ok(None);
        };
        if frame::size(u64::from(header.length)) > room {
            return Ok(None);
        }
        let whole = self.bytes(position, HEADER + header.length as usize)?;
        let Some((raw, payload)) = whole.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        if payload.len() != header.length as usize || !frame::verify(log, raw, payload) {
            return Ok(None);
        }
        let payload = payload.to_vec();
        Ok(Some((header, payload)))
    }
}

/// Visits the records of one segment and answers the position after the last valid frame.
pub(crate) fn scan(
    segment: &Segment,
    log: u64,
    visit: &mut dyn FnMut(Record) -> Result<(), LogError>,
) -> Result<u64, LogError> {
    let mut cursor = Cursor::new(segment);
    let mut position = segment.base;
    while let Some((header, payload)) = cursor.frame(log, position)? {
        let next = position + frame::size(u64::from(header.length));
        if header.kind != MARK {
            visit(Record { position: Position(position), kind: header.kind, payload })?;
        }
        position = next;
    }
    Ok(position)
}

/// What lies behind the first frame that cannot be read.
pub(crate) struct Tail {
    /// Whether there is any valid frame.
    pub frames: bool,
    /// The furthest position that one of them says was on stable storage.
    pub durable: u64,
}

/// Looks for valid frames behind `position`.
pub(crate) fn look_behind(segment: &Segment, log: u64, position: u64) -> Result<Tail, LogError> {
    let mut tail = Tail { frames: false, durable: 0 };
    let mut cursor = Cursor::new(segment);
    let mut at = position + 8;
    while at + HEADER as u64 <= segment.limit() {
        if frame::decode(cursor.bytes(at, HEADER)?, at).is_none() {
            at += 8;
            continue;
        }
        match cursor.frame(log, at)? {
            Some((header, _)) => {
                tail.frames = true;
                tail.durable = tail.durable.max(header.durable);
                at += frame::size(u64::from(header.length));
            }
            None => at += 8,
        }
    }
    Ok(tail)
}

/// Decides about the end of the last segment: cuts a torn tail, refuses damage.
pub(crate) fn settle_tail(segment: &Segment, log: u64, end: u64) -> Result<(), LogError> {
    let tail = look_behind(segment, log, end)?;
    if tail.durable > end {
        return Err(LogError::Corrupt {
            file: segment.path.clone(),
            offset: segment.offset(end),
            problem: format!(
                "a record is damaged, though everything before position {} was on stable storage",
                tail.durable
            ),
        });
    }
    if tail.frames {
        // They were never promised, and would be found again behind new records of the right size.
        segment.wipe(end)?;
    }
    Ok(())
}
