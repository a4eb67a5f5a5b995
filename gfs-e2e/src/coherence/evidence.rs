//! What the workers of one round saw of each object, and the verdict on it.

use super::deeds::{Counter, Lock, Log, Naming, Register, Shape};
use super::history::{Call, Deed, Violation, check};
use std::collections::BTreeMap;
use std::fmt;

/// What was done to a log, before it is known where each record went.
#[derive(Clone, Debug)]
pub enum Appending {
    /// A record with this stamp was appended.
    Append(u64),
    /// These records were there.
    Found(Vec<u64>),
    /// So many bytes were there, in records.
    Long(Option<usize>),
}

/// Histories by the name of their object.
type Histories<D> = BTreeMap<String, Vec<Call<D>>>;

/// Everything that was seen in one round.
#[derive(Default)]
pub struct Evidence {
    /// Blocks, modes, owners, times, extended attributes; all begin with 0.
    pub registers: Histories<Register>,
    /// Files that grow and are cut; all begin empty.
    pub shapes: Histories<Shape>,
    /// Logs; all begin empty.
    pub logs: Histories<Appending>,
    /// Directories; all begin empty.
    pub names: Histories<Naming>,
    /// Locks; all begin free.
    pub locks: Histories<Lock>,
    /// Counters; all begin with 0.
    pub counters: Histories<Counter>,
    /// Calls that failed with what is no answer.
    pub failed: Vec<String>,
}

/// How much was checked.
#[derive(Clone, Copy, Default, Debug)]
pub struct Checked {
    /// Objects.
    pub objects: usize,
    /// Their deeds.
    pub deeds: usize,
    /// Deeds of which nobody knows whether they happened.
    pub doubtful: usize,
}

impl Checked {
    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            objects: self.objects + other.objects,
            deeds: self.deeds + other.deeds,
            doubtful: self.doubtful + other.doubtful,
        }
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} deeds on {} objects, {} in doubt", self.deeds, self.objects, self.doubtful)
    }
}

impl Evidence {
    /// Takes what another worker saw.
    pub fn add(&mut self, other: Self) {
        join(&mut self.registers, other.registers);
        join(&mut self.shapes, other.shapes);
        join(&mut self.logs, other.logs);
        join(&mut self.names, other.names);
        join(&mut self.locks, other.locks);
        join(&mut self.counters, other.counters);
        self.failed.extend(other.failed);
    }

    /// Whether each object was at every moment what it was said to be. What is wrong is told for each object.
    pub fn judge(&self) -> Result<Checked, String> {
        let mut wrong = Vec::new();
        let mut checked = judge_all(&self.registers, &mut wrong);
        checked = checked.and(judge_all(&self.shapes, &mut wrong));
        checked = checked.and(judge_all(&self.names, &mut wrong));
        checked = checked.and(judge_all(&self.locks, &mut wrong));
        checked = checked.and(judge_all(&self.counters, &mut wrong));
        for (name, calls) in &self.logs {
            let judged = in_places(calls).and_then(|calls| check(0, &calls).map_err(|v| v.to_string()));
            checked = checked.and(note(name, calls, judged, &mut wrong));
        }
        if wrong.is_empty() { Ok(checked) } else { Err(wrong.join("\n")) }
    }
}

fn join<D>(all: &mut Histories<D>, more: Histories<D>) {
    more.into_iter().for_each(|(name, calls)| all.entry(name).or_default().extend(calls));
}

fn judge_all<D: Deed<State: Default>>(histories: &Histories<D>, wrong: &mut Vec<String>) -> Checked {
    let judge = |(name, calls): (&String, &Vec<Call<D>>)| {
        note(
            name,
            calls,
            check(D::State::default(), calls).map_err(|violation: Violation| violation.to_string()),
            wrong,
        )
    };
    histories.iter().map(judge).fold(Checked::default(), Checked::and)
}

fn note<D>(name: &str, calls: &[Call<D>], judged: Result<(), String>, wrong: &mut Vec<String>) -> Checked {
    if let Err(told) = judged {
        wrong.push(format!("{name}: {told}"));
    }
    let doubtful = calls.iter().filter(|call| call.end.is_none()).count();
    Checked { objects: 1, deeds: calls.len(), doubtful }
}

/// Gives each append the place that its record has in the end; a record that is there twice, never, or in two places is told.
fn in_places(calls: &[Call<Appending>]) -> Result<Vec<Call<Log>>, String> {
    let found = calls.iter().filter_map(|call| match &call.deed {
        Appending::Found(records) => Some(records),
        _ => None,
    });
    let last = found.max_by_key(|records| records.len()).cloned().unwrap_or_default();
    let mut places = BTreeMap::new();
    for (place, stamp) in last.iter().enumerate() {
        if let Some(first) = places.insert(*stamp, place) {
            return Err(format!("record {stamp:#x} is there twice, at {first} and at {place}"));
        }
    }
    let mut deeds = Vec::new();
    for call in calls {
        let deed = match &call.deed {
            Appending::Append(stamp) => match (places.remove(stamp), call.end) {
                (Some(place), _) => Log::Append(place),
                (None, None) => continue,
                (None, Some(_)) => return Err(format!("record {stamp:#x} was appended and is lost")),
            },
            Appending::Found(records) if last.starts_with(records) => Log::Long(records.len()),
            Appending::Found(records) => return Err(format!("{records:#x?} is no beginning of {last:#x?}")),
            Appending::Long(Some(length)) => Log::Long(*length),
            Appending::Long(None) => return Err("the length is no number of records".into()),
        };
        deeds.push(Call { deed, who: call.who, how: call.how.clone(), begin: call.begin, end: call.end });
    }
    match places.first_key_value() {
        Some((stamp, place)) => Err(format!("record {stamp:#x} at {place} was appended by nobody")),
        None => Ok(deeds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Appending::{Append, Found, Long};

    fn judge(deeds: &[(u64, u64, Appending)]) -> Result<Checked, String> {
        let call = |(begin, end, deed): &(u64, u64, Appending)| Call {
            who: 0,
            how: String::new(),
            deed: deed.clone(),
            begin: *begin,
            end: (*end > 0).then_some(*end),
        };
        let logs = BTreeMap::from([("log".to_string(), deeds.iter().map(call).collect())]);
        Evidence { logs, ..Evidence::default() }.judge()
    }

    #[track_caller]
    fn told(deeds: &[(u64, u64, Appending)], what: &str) {
        let told = judge(deeds).unwrap_err();
        assert!(told.contains(what), "{told}");
    }

    #[test]
    fn every_append_is_there_once_in_the_order_of_time() {
        let appended = |found: &[u64]| [(1, 2, Append(7)), (3, 4, Append(8)), (5, 6, Found(found.to_vec()))];
        judge(&appended(&[7, 8])).unwrap();
        told(&appended(&[8, 7]), "no order explains");
        told(&appended(&[7, 8, 7]), "twice");
        told(&appended(&[7]), "0x8 was appended and is lost");
        told(&appended(&[7, 8, 9]), "by nobody");
    }

    #[test]
    fn appends_beside_each_other_come_in_any_order_and_one_that_failed_may_be_there() {
        judge(&[(1, 4, Append(7)), (2, 3, Append(8)), (5, 6, Found(vec![8, 7]))]).unwrap();
        judge(&[(1, 0, Append(7)), (2, 3, Append(8)), (5, 6, Found(vec![8]))]).unwrap();
        judge(&[(1, 0, Append(7)), (2, 3, Append(8)), (5, 6, Found(vec![8, 7]))]).unwrap();
        told(&[(1, 0, Append(7)), (2, 3, Append(8)), (5, 6, Found(vec![7]))], "lost");
    }

    #[test]
    fn a_log_never_shows_less_or_other_records_than_before() {
        let begin = [(1, 2, Append(7)), (3, 4, Append(8))];
        let after = |more: &[(u64, u64, Appending)]| begin.iter().chain(more).cloned().collect::<Vec<_>>();
        judge(&after(&[(5, 6, Long(Some(2))), (7, 8, Found(vec![7, 8]))])).unwrap();
        told(&after(&[(5, 6, Long(Some(1))), (7, 8, Found(vec![7, 8]))]), "no order explains");
        told(&after(&[(5, 6, Found(vec![7])), (7, 8, Found(vec![7, 8]))]), "no order explains");
        told(&after(&[(5, 6, Found(vec![9])), (7, 8, Found(vec![7, 8]))]), "no beginning");
        told(&after(&[(5, 6, Long(None)), (7, 8, Found(vec![7, 8]))]), "no number of records");
    }

    #[test]
    fn one_wrong_object_among_others_is_named() {
        let read = |value| Call { who: 3, how: String::new(), deed: Register::Read(value), begin: 1, end: Some(2) };
        let mut evidence = Evidence::default();
        evidence.registers.insert("block 0".into(), vec![read(0)]);
        assert_eq!(evidence.judge().unwrap().deeds, 1);
        let mut more = Evidence::default();
        more.registers.insert("block 0".into(), vec![read(0)]);
        more.registers.insert("block 1".into(), vec![read(9)]);
        evidence.add(more);
        let told = evidence.judge().unwrap_err();
        assert!(told.starts_with("block 1: no order explains") && !told.contains("block 0"), "{told}");
    }
}
