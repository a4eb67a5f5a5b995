//! Who holds a chunk after members have gone (design section 4, rules 6 and 7).
//!
//! This room owns the rule that a good copy is never given up for a worse one. That a member may be dropped now (it agreed, or its
//! lease is surely over) is the caller's to have made sure of. The epoch of what is answered is that of what it came from.

use super::{ClusterView, configure};
use crate::ids::{Sequence, ServerId};
use crate::meta::request::Configuration;

/// What a replica that may lack something after a power loss still holds. The greater one knows more: whatever was
/// synced lies at or below the first number of every member.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Claim {
    /// On stable storage up to here before the power went.
    pub flushed: Sequence,
    /// Committed up to here.
    pub committed: Sequence,
    /// Stored up to here.
    pub prepared: Sequence,
}

/// How a member stands, as the master knows it now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Online, has said what it holds, and holds everything that was acknowledged.
    Sound,
    /// The same, but for blocks that do not match their checksums.
    Damaged,
    /// Online, but it may lack something after a power loss. It serves nothing.
    Suspect(Claim),
    /// Online and whole, but it takes no more writes: its disk is full, or it was asked to leave.
    Retired,
    /// It has said that it cannot serve this replica any more.
    Gone,
    /// Not here, or it has not said yet what it holds.
    Unknown,
}

/// What the master knows beyond the configuration.
pub struct Known<'a> {
    /// The servers.
    pub view: &'a ClusterView,
    /// How each member stands.
    pub standing: &'a dyn Fn(ServerId) -> Standing,
    /// Members that are not here have been waited for long enough, when all others lost power.
    pub waited: bool,
    /// Whether a member may be dropped that nobody has called failed.
    pub may_drop: &'a dyn Fn(ServerId) -> bool,
}

/// The configuration without `failed` and with `ready` as members; `None` when nobody who can lead would be left.
///
/// A new primary was a member, since only those have everything that was prepared. When all who are here lost power, the one that
/// knows most goes on alone, and the others are filled from it: at once when every member is here, else when those who are not
/// have been waited for. One that has only retired knows everything.
pub fn successor(
    now: &Configuration,
    failed: &[ServerId],
    ready: &[ServerId],
    known: &Known<'_>,
) -> Option<Configuration> {
    if !failed.contains(&now.primary) {
        match (known.standing)(now.primary) {
            Standing::Sound | Standing::Damaged => {
                return Some(configure::promoted(&configure::without(now, failed, known.view)?, ready));
            }
            // Perhaps it is only late: whoever misses it calls it failed.
            Standing::Unknown => return None,
            Standing::Suspect(_) | Standing::Retired | Standing::Gone => {}
        }
    }
    let rest: Vec<ServerId> = now.members.iter().filter(|server| !failed.contains(server)).copied().collect();
    let Some(primary) = can_lead(&rest, known) else {
        let filled = configure::promoted(now, ready);
        // A primary that can't go on, and has filled others: they are members first, and may lead next.
        return if filled == *now { survivor(now, known) } else { Some(filled) };
    };
    // Those that lost power would only be told to leave by the new primary.
    let gone: Vec<ServerId> = now.members.iter().filter(|server| is_suspect(**server, known)).copied().collect();
    let rest = configure::without(now, &[failed, &gone].concat(), known.view)?;
    Some(configure::promoted(&Configuration { primary, ..rest }, ready))
}

/// Whether what `successor` answered is to be put in force. A primary that can't go on as it is, and that nobody can follow, goes on
/// in a new epoch even when nothing else changes.
pub fn is_change(now: &Configuration, failed: &[ServerId], next: &Configuration) -> bool {
    next != now || failed.contains(&now.primary)
}

/// The best of some members to lead, the sound before the damaged.
fn can_lead(members: &[ServerId], known: &Known<'_>) -> Option<ServerId> {
    let with = |wanted: Standing| {
        let fit = members.iter().copied().filter(|server| (known.standing)(*server) == wanted);
        configure::best_primary(&fit.collect::<Vec<_>>(), known.view)
    };
    with(Standing::Sound).or_else(|| with(Standing::Damaged))
}

fn is_suspect(server: ServerId, known: &Known<'_>) -> bool {
    matches!((known.standing)(server), Standing::Suspect(_))
}

/// Rule 7: the member that knows most after all who are here have lost power. Among equals the lowest number.
fn survivor(now: &Configuration, known: &Known<'_>) -> Option<Configuration> {
    /// In this order.
    #[derive(PartialEq, Eq, PartialOrd, Ord)]
    enum Knows {
        Some(Claim),
        All,
    }
    let mut best: Option<(Knows, ServerId)> = None;
    for server in now.members.iter().copied() {
        let knows = match (known.standing)(server) {
            Standing::Suspect(claim) => Knows::Some(claim),
            Standing::Retired => Knows::All,
            Standing::Gone => continue,
            Standing::Unknown if known.waited && (known.may_drop)(server) => continue,
            Standing::Unknown | Standing::Sound | Standing::Damaged => return None,
        };
        if best.as_ref().is_none_or(|(most, _)| knows > *most) {
            best = Some((knows, server));
        }
    }
    let (_, primary) = best?;
    Some(Configuration { epoch: now.epoch, primary, members: vec![primary], syncing: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;
    use crate::placement::ServerView;
    use std::collections::BTreeMap;

    fn ids(list: &[u16]) -> Vec<ServerId> {
        list.iter().copied().map(ServerId).collect()
    }

    fn configuration(primary: u16, members: &[u16], syncing: &[u16]) -> Configuration {
        Configuration { epoch: Epoch(4), primary: ServerId(primary), members: ids(members), syncing: ids(syncing) }
    }

    fn suspect(flushed: u64, committed: u64) -> Standing {
        let (flushed, committed) = (Sequence(flushed), Sequence(committed));
        Standing::Suspect(Claim { flushed, committed, prepared: committed })
    }

    struct Case {
        standing: BTreeMap<ServerId, Standing>,
        waited: bool,
        leased: Vec<ServerId>,
    }

    impl Case {
        /// Servers that are not listed are unknown.
        fn new(standing: &[(u16, Standing)]) -> Self {
            let standing = standing.iter().map(|(server, standing)| (ServerId(*server), *standing)).collect();
            Self { standing, waited: false, leased: Vec::new() }
        }

        fn next(&self, now: &Configuration, failed: &[u16], ready: &[u16]) -> Option<Configuration> {
            let servers = (1..=9).map(|id| ServerView { server: ServerId(id), online: true, ..Default::default() });
            let known = Known {
                view: &ClusterView::new(servers),
                standing: &|server| self.standing.get(&server).copied().unwrap_or(Standing::Unknown),
                waited: self.waited,
                may_drop: &|server| !self.leased.contains(&server),
            };
            successor(now, &ids(failed), &ids(ready), &known)
        }
    }

    const SOUND: Standing = Standing::Sound;

    #[test]
    fn a_failed_secondary_is_left_out_and_the_primary_stays() {
        let now = configuration(2, &[1, 2, 3], &[]);
        assert_eq!(Case::new(&[(2, SOUND)]).next(&now, &[3], &[]), Some(configuration(2, &[1, 2], &[])));
    }

    #[test]
    fn a_primary_that_nobody_calls_failed_stays_until_it_is_heard_again() {
        let now = configuration(2, &[1, 2, 3], &[]);
        assert_eq!(Case::new(&[(1, SOUND)]).next(&now, &[3], &[]), None);
        let gone = Case::new(&[(1, SOUND), (2, Standing::Gone)]);
        assert_eq!(gone.next(&now, &[3], &[]), Some(configuration(1, &[1, 2], &[])));
    }

    #[test]
    fn a_failed_primary_is_followed_by_a_sound_member_and_never_by_a_syncing_one() {
        let now = configuration(1, &[1, 2, 3], &[4]);
        let case = Case::new(&[(3, SOUND), (4, SOUND)]);
        assert_eq!(case.next(&now, &[1], &[]), Some(configuration(3, &[2, 3], &[4])));
        assert_eq!(Case::new(&[(4, SOUND)]).next(&configuration(1, &[1], &[4]), &[1], &[]), None);
        assert_eq!(Case::new(&[]).next(&now, &[1], &[]), None);
    }

    #[test]
    fn what_a_failing_primary_has_filled_becomes_a_member_before_it_leads() {
        let case = Case::new(&[(1, Standing::Gone), (4, SOUND)]);
        let between = configuration(1, &[1, 4], &[5]);
        assert_eq!(case.next(&configuration(1, &[1], &[4, 5]), &[1], &[4]), Some(between.clone()));
        assert_eq!(case.next(&between, &[1], &[]), Some(configuration(4, &[4], &[5])));
    }

    #[test]
    fn a_ready_syncing_member_becomes_a_member() {
        let now = configuration(2, &[2, 5], &[1, 7]);
        let case = Case::new(&[(2, SOUND)]);
        assert_eq!(case.next(&now, &[], &[1, 9]), Some(configuration(2, &[1, 2, 5], &[7])));
        assert_eq!(case.next(&now, &[1], &[1]), Some(configuration(2, &[2, 5], &[7])));
    }

    #[test]
    fn the_only_member_that_lost_power_gets_a_new_epoch() {
        let now = configuration(1, &[1], &[]);
        let next = Case::new(&[(1, suspect(5, 5))]).next(&now, &[1], &[]).unwrap();
        assert_eq!(next, now);
        assert!(is_change(&now, &ids(&[1]), &next));
        assert!(!is_change(&now, &ids(&[3]), &next));
    }

    #[test]
    fn a_damaged_member_leads_only_when_no_sound_one_is_left() {
        let now = configuration(1, &[1, 2, 3], &[]);
        let damaged = Standing::Damaged;
        assert_eq!(Case::new(&[(2, damaged), (3, SOUND)]).next(&now, &[1], &[]).unwrap().primary, ServerId(3));
        assert_eq!(Case::new(&[(2, damaged)]).next(&now, &[1], &[]), Some(configuration(2, &[2, 3], &[])));
    }

    #[test]
    fn whoever_lost_power_goes_when_a_sound_member_is_there() {
        let now = configuration(1, &[1, 2, 3], &[]);
        let case = Case::new(&[(1, suspect(9, 9)), (2, suspect(9, 12)), (3, SOUND)]);
        assert_eq!(case.next(&now, &[1], &[]), Some(configuration(3, &[3], &[])));
    }

    #[test]
    fn when_all_lost_power_the_one_that_has_flushed_most_goes_on_alone() {
        let now = configuration(1, &[1, 2, 3], &[7]);
        let case = Case::new(&[(1, suspect(5, 5)), (2, suspect(4, 30)), (3, suspect(5, 8))]);
        assert_eq!(case.next(&now, &[1], &[]), Some(configuration(3, &[3], &[])));
        let equal = Case::new(&[(1, suspect(5, 5)), (2, suspect(5, 5)), (3, Standing::Gone)]);
        assert_eq!(equal.next(&now, &[1], &[]), Some(configuration(1, &[1], &[])));
    }

    #[test]
    fn one_that_has_only_retired_goes_on_rather_than_one_that_lost_power() {
        let now = configuration(1, &[1, 2, 3], &[]);
        let mut case = Case::new(&[(1, suspect(5, 5)), (2, Standing::Retired), (3, suspect(9, 9))]);
        assert_eq!(case.next(&now, &[1], &[]), Some(configuration(2, &[2], &[])));
        assert_eq!(case.next(&now, &[2], &[]), Some(configuration(2, &[2], &[])), "the only whole copy was left out");
        case.standing.insert(ServerId(1), SOUND);
        assert_eq!(case.next(&now, &[2], &[]), Some(configuration(1, &[1, 3], &[])));
    }

    #[test]
    fn who_is_not_here_is_waited_for_before_one_that_lost_power_goes_on() {
        let now = configuration(1, &[1, 2, 3], &[]);
        let mut case = Case::new(&[(1, suspect(5, 5)), (2, suspect(6, 6))]);
        assert_eq!(case.next(&now, &[1], &[]), None);
        assert_eq!(case.next(&now, &[3], &[]), None, "a secondary that is away was dropped in favour of suspects");
        case.waited = true;
        case.leased = ids(&[3]);
        assert_eq!(case.next(&now, &[1], &[]), None, "a member with a lease was dropped");
        case.leased.clear();
        assert_eq!(case.next(&now, &[1], &[]), Some(configuration(2, &[2], &[])));
        assert_eq!(Case { waited: true, ..Case::new(&[]) }.next(&now, &[1], &[]), None);
    }
}
