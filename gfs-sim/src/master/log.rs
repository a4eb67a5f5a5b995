//! The master's log: what survives a kill, what survives a power cut, and that replaying it gives one state.

use crate::rng::Rng;
use gfs_core::breaks::Broken;
use gfs_core::ids::ClusterId;
use gfs_core::meta::command::{Command, CommandReply, Stamp};
use gfs_core::meta::request::Timestamp;
use gfs_core::meta::state::State;
use std::convert::Infallible;

/// A log with its checkpoint.
pub struct Log {
    genesis: State,
    /// What every replay breaks too.
    breaks: Broken,
    entries: Vec<(Stamp, Command)>,
    synced: usize,
    /// An answered barrier promises everything up to here.
    promised: usize,
    /// A state, as bytes, and how many entries it holds.
    checkpoint: (Vec<u8>, usize),
}

fn encode(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    let written = state.encode_checkpoint(&mut |piece| {
        bytes.extend_from_slice(piece);
        Ok::<(), Infallible>(())
    });
    assert_eq!(written, Ok(()));
    bytes
}

fn decode(bytes: &[u8]) -> State {
    let mut pieces = bytes.chunks(1000);
    let decoded = State::decode_checkpoint(&mut || Ok::<_, Infallible>(pieces.next().map(<[u8]>::to_vec)));
    decoded.unwrap_or_else(|error| panic!("a checkpoint does not decode: {error}"))
}

impl Log {
    /// The log of a fresh cluster.
    pub fn format(chunk_size: u64, goal: u8, breaks: Broken) -> Self {
        let mut genesis = State::format(ClusterId(7), chunk_size, goal, 0o755, Timestamp(0));
        genesis.break_rule(breaks);
        let checkpoint = (encode(&genesis), 0);
        Self { genesis, breaks, entries: Vec::new(), synced: 0, promised: 0, checkpoint }
    }

    /// Appends a command and applies it.
    pub fn submit(&mut self, state: &mut State, now: u64, command: Command) -> CommandReply {
        let stamp = Stamp { now: Timestamp(now as i64 * 1_000_000), seed: self.entries.len() as u64 };
        let reply = state.apply(stamp, &command);

        self.entries.push((stamp, command));
        reply
    }

    /// Everything is on stable storage.
    pub fn sync(&mut self) {
        self.synced = self.entries.len();
    }

    /// Whether a flush is due.
    pub fn is_dirty(&self) -> bool {
        self.synced < self.entries.len()
    }

    /// A barrier is answered: whatever is in the log now is promised to survive a power cut.
    pub fn note_barrier(&mut self) {
        self.promised = self.entries.len();
    }

    /// Writes a checkpoint. It never holds what the log could lose.
    pub fn write_checkpoint(&mut self, state: &State) {
        self.sync();
        self.checkpoint = (encode(state), self.entries.len());
    }

    /// The power goes: of what was not flushed a part is lost. Answers whether anything is.
    pub fn lose_power(&mut self, rng: &mut Rng, found: &mut Vec<String>) -> bool {
        let keep = rng.between(self.synced as u64, self.entries.len() as u64) as usize;
        if keep < self.promised {
            found.push(format!("{} entries survive a power cut, a barrier promised {}", keep, self.promised));
        }
        let lost = self.entries.split_off(keep);
        self.synced = keep;
        !lost.is_empty()
    }

    /// The state after all entries from the `from`th on, applied to an empty cluster or to the checkpoint.
    pub fn replay(&self, from: usize) -> State {
        let mut state = if from == 0 { self.genesis.clone() } else { decode(&self.checkpoint.0) };
        state.break_rule(self.breaks);
        for (stamp, command) in &self.entries[from..] {
            state.apply(*stamp, command);
        }
        state
    }

    /// The state that a starting master has.
    pub fn replay_from_checkpoint(&self) -> State {
        self.replay(self.checkpoint.1)
    }

    /// What is wrong with the replays: from the start and from the checkpoint they must give the same state, whose bytes give
    /// it again.
    pub fn check_replays(&self) -> Vec<String> {
        let (whole, tail) = (self.replay(0), self.replay_from_checkpoint());
        let mut found = Vec::new();
        if whole.hash() != tail.hash() {
            found.push("the whole log and the checkpoint with its tail give different states".to_string());
        }
        let bytes = encode(&whole);
        if bytes != encode(&tail) {
            found.push("the whole log and the checkpoint with its tail are written as different bytes".to_string());
        }
        if decode(&bytes).hash() != whole.hash() {
            found.push("a state does not come back from its bytes".to_string());
        }
        found
    }
}
