//! Calls with times, and the search for an order of them that explains every answer.
//!
//! A history is *linearizable* (Herlihy and Wing, "Linearizability: a correctness condition for concurrent objects", 1990) if every call
//! can be taken to have happened at one moment between its begin and its end. The search goes through the history in the order of time and
//! carries along every state that the object may be in, with the calls under way that have happened already: a call has to have
//! happened when it ends (Lowe, "Testing for linearizability", 2017, "just-in-time linearization"). What was found impossible is told with the call
//! at whose end nothing was left.

use std::collections::BTreeSet;
use std::fmt::{self, Debug};

/// What somebody did to an object and was answered.
pub trait Deed: Clone + Debug {
    /// All that the object remembers.
    type State: Clone + Ord + Debug;

    /// The object after it, or nothing if this answer cannot be had in that state.
    fn done(&self, before: &Self::State) -> Option<Self::State>;

    /// Whether it is a question, which changes nothing in any state.
    fn asks(&self) -> bool;
}

/// A deed with its times.
#[derive(Clone, Debug)]
pub struct Call<D> {
    /// Who did it, for messages.
    pub who: u16,
    /// By what means, for messages.
    pub how: String,
    /// What it was, with its answer.
    pub deed: D,
    /// When it began, in ns of the run's clock.
    pub begin: u64,
    /// When it returned. What failed has none: it may have happened, or happen yet, or never.
    pub end: Option<u64>,
}

impl<D> Call<D> {
    /// The same call, told as another deed.
    pub fn map<E>(self, deed: impl FnOnce(D) -> E) -> Call<E> {
        Call { who: self.who, how: self.how, deed: deed(self.deed), begin: self.begin, end: self.end }
    }
}

/// A history that no order explains.
#[derive(Debug)]
pub struct Violation {
    /// The call at whose end nothing is left, what was under way or before it, and what the object may have been.
    pub told: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told)
    }
}

/// How many calls before the impossible one are told.
const TOLD: usize = 16;
/// States that may be possible at a time: a history that leaves more says too little.
const MOST_WORLDS: usize = 500_000;

/// A state that is possible, and which calls under way have happened in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct World<S> {
    happened: BTreeSet<usize>,
    state: S,
}

/// Looks for an order of the calls that explains all answers, from a known state on.
pub fn check<D: Deed>(start: D::State, calls: &[Call<D>]) -> Result<(), Violation> {
    // Where one ends in the moment in which another begins they count as concurrent.
    let begins = calls.iter().enumerate().map(|(index, call)| (call.begin, false, index));
    let ends = calls.iter().enumerate().filter_map(|(index, call)| Some((call.end?, true, index)));
    let mut events: Vec<_> = begins.chain(ends).collect();
    events.sort_unstable();
    let mut pending = BTreeSet::new();
    let mut worlds = BTreeSet::from([World { happened: BTreeSet::new(), state: start }]);
    for (_, is_end, index) in events {
        if !is_end {
            pending.insert(index);
            continue;
        }
        let after = ended(calls, index, &pending, &worlds)?;
        if after.is_empty() {
            return Err(violation(calls, index, &pending, &worlds));
        }
        worlds = after;
        pending.remove(&index);
    }
    Ok(())
}

/// All that is possible when a call ends: it has happened, and before it as many others under way as it takes.
fn ended<D: Deed>(
    calls: &[Call<D>],
    index: usize,
    pending: &BTreeSet<usize>,
    worlds: &BTreeSet<World<D::State>>,
) -> Result<BTreeSet<World<D::State>>, Violation> {
    let mut after = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut open: Vec<_> = worlds.iter().cloned().collect();
    while let Some(mut world) = open.pop() {
        look_on(calls, pending, &mut world);
        if world.happened.remove(&index) {
            after.insert(world);
            continue;
        }
        for other in pending.difference(&world.happened) {
            if let Some(state) = calls[*other].deed.done(&world.state) {
                let mut next = World { happened: world.happened.clone(), state };
                next.happened.insert(*other);
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        if seen.len() > MOST_WORLDS {
            return Err(Violation { told: format!("{} calls at a time say too little", pending.len()) });
        }
    }
    Ok(after)
}

/// A question that can be answered here may be answered here: that keeps nobody else from anything.
fn look_on<D: Deed>(calls: &[Call<D>], pending: &BTreeSet<usize>, world: &mut World<D::State>) {
    for index in pending {
        let deed = &calls[*index].deed;
        if deed.asks() && deed.done(&world.state).is_some() {
            world.happened.insert(*index);
        }
    }
}

fn violation<D: Deed>(
    calls: &[Call<D>],
    index: usize,
    pending: &BTreeSet<usize>,
    worlds: &BTreeSet<World<D::State>>,
) -> Violation {
    let tell = |call: &Call<D>| {
        let end = call.end.map_or("never".into(), |end| format!("{:.6}", end as f64 / 1e9));
        format!("\n    {:04x} {:.6} to {end}: {:?}, {}", call.who, call.begin as f64 / 1e9, call.deed, call.how)
    };
    let limit = calls[index].end.unwrap_or(u64::MAX);
    let mut before: Vec<_> =
        (0..calls.len()).filter(|n| *n != index && calls[*n].end.is_some_and(|end| end <= limit)).collect();
    before.sort_by_key(|n| calls[*n].end);
    let before: String = before.iter().rev().take(TOLD).rev().map(|n| tell(&calls[*n])).collect();
    let beside: String = pending.iter().filter(|n| **n != index).map(|n| tell(&calls[*n])).collect();
    let states: BTreeSet<_> = worlds.iter().map(|world| &world.state).collect();
    let states: String = states.iter().take(TOLD).map(|state| format!("\n    {state:?}")).collect();
    let told = format!(
        "no order explains{}\n  it may have been, before:{states}\n  ended before:{before}\n  under way:{beside}",
        tell(&calls[index])
    );
    Violation { told }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The simplest object: what was put is what is got.
    #[derive(Clone, Debug)]
    enum Cell {
        Put(u8),
        Got(u8),
    }

    impl Deed for Cell {
        type State = u8;

        fn done(&self, before: &u8) -> Option<u8> {
            match self {
                Self::Put(value) => Some(*value),
                Self::Got(value) => (value == before).then_some(*before),
            }
        }

        fn asks(&self) -> bool {
            matches!(self, Self::Got(_))
        }
    }

    use Cell::{Got, Put};

    fn history(calls: &[(u64, u64, Cell)]) -> Vec<Call<Cell>> {
        let end = |end: u64| (end > 0).then_some(end);
        let call = |(begin, e, deed): &(u64, u64, Cell)| {
            let (begin, end, how) = (*begin, end(*e), String::new());
            Call { who: 0, how, deed: deed.clone(), begin, end }
        };
        calls.iter().map(call).collect()
    }

    #[track_caller]
    fn legal(calls: &[(u64, u64, Cell)]) {
        check(0, &history(calls)).unwrap();
    }

    #[track_caller]
    fn illegal(calls: &[(u64, u64, Cell)]) -> String {
        check(0, &history(calls)).unwrap_err().to_string()
    }

    #[test]
    fn a_value_that_was_put_before_is_got_and_none_that_was_put_over() {
        legal(&[(1, 2, Put(1)), (3, 4, Got(1)), (5, 6, Put(2)), (7, 8, Got(2))]);
        let told = illegal(&[(1, 2, Put(1)), (3, 4, Put(2)), (5, 6, Got(1))]);
        assert!(told.contains("Got(1)") && told.contains("\n    2\n"), "{told}");
        illegal(&[(1, 2, Put(1)), (3, 4, Got(0))]);
        illegal(&[(1, 2, Got(1)), (3, 4, Put(1))]);
    }

    #[test]
    fn calls_beside_each_other_come_in_any_order() {
        legal(&[(1, 10, Put(1)), (2, 9, Got(0))]);
        legal(&[(1, 10, Put(1)), (2, 9, Got(1))]);
        legal(&[(1, 10, Put(1)), (1, 10, Put(2)), (11, 12, Got(1))]);
        legal(&[(1, 10, Put(1)), (1, 10, Put(2)), (11, 12, Got(2))]);
        // One that ends when the other begins counts as beside it.
        legal(&[(1, 2, Put(1)), (2, 3, Got(0))]);
    }

    #[test]
    fn a_value_that_was_seen_does_not_go_back() {
        illegal(&[(1, 20, Put(1)), (2, 3, Got(1)), (4, 5, Got(0))]);
        illegal(&[(1, 20, Put(1)), (1, 20, Put(2)), (2, 3, Got(1)), (4, 5, Got(2)), (6, 7, Got(1))]);
        legal(&[(1, 20, Put(1)), (1, 20, Put(2)), (1, 20, Put(1)), (2, 3, Got(1)), (4, 5, Got(2)), (6, 7, Got(1))]);
    }

    #[test]
    fn readers_beside_a_writer_need_one_order_for_all() {
        // Each of the two readers could be explained alone.
        let writers = [(1, 20, Put(1)), (1, 20, Put(2))];
        let mut calls = writers.to_vec();
        calls.extend([(2, 3, Got(1)), (4, 5, Got(2)), (21, 22, Got(1))]);
        illegal(&calls);
        calls.truncate(4);
        legal(&calls);
    }

    #[test]
    fn what_failed_may_have_happened_at_any_time_from_its_begin_on_or_never() {
        legal(&[(1, 0, Put(1)), (2, 3, Got(0))]);
        legal(&[(1, 0, Put(1)), (2, 3, Got(0)), (4, 5, Got(1))]);
        illegal(&[(1, 0, Put(1)), (2, 3, Got(1)), (4, 5, Got(0))]);
        illegal(&[(1, 2, Got(1)), (3, 0, Put(1))]);
    }

    #[test]
    fn long_histories_with_many_beside_each_other_are_checked() {
        let round = |n: u64| {
            let value = (n % 200) as u8;
            let at = n * 100;
            let puts = (0..6).map(move |k| (at + k, at + 50 + k, Put(value + k as u8)));
            puts.chain([(at + 60, at + 70, Got(value + 3)), (at + 60, at + 71, Got(value + 3))])
        };
        let mut calls: Vec<_> = (1..400).flat_map(round).collect();
        legal(&calls);
        calls.push((50_000, 50_001, Got(255)));
        illegal(&calls);
    }
}
