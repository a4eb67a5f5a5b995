//! Where new replicas go.
//!
//! This room owns the choice among servers: spread over zones, then hosts, never two on one server, and among
//! equals by chance, weighted by free space and load, so that neither a herd nor a full disk results. It holds
//! no state: the view and the seed are arguments, and the same arguments give the same choice.

use crate::ids::ServerId;
use crate::splitmix::SplitMix64;
use std::collections::BTreeMap;

/// What is known of a server at the moment of choosing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServerView {
    /// Its number.
    pub server: ServerId,
    /// Failure domain above the host; may be empty.
    pub zone: String,
    /// Failure domain below it; may be empty: then the server is a host of its own.
    pub host: String,
    /// Bytes that its working disks hold.
    pub total: u64,
    /// Bytes that are free there.
    pub free: u64,
    /// Below so many free bytes it is full.
    pub reserve: u64,
    /// Requests in flight.
    pub load: u32,
    /// It holds a lease and is not suspect.
    pub online: bool,
    /// An operator wants it empty.
    pub draining: bool,
    /// Others cannot work with it, although it is online.
    pub shunned: bool,
}

impl ServerView {
    /// Whether it may get new replicas.
    pub fn usable(&self) -> bool {
        self.online && !self.draining && !self.shunned && self.free > self.reserve
    }

    /// Share of chances: free megabytes, less under load. Never 0 for a usable server.
    fn weight(&self) -> u64 {
        let room = (self.free.saturating_sub(self.reserve) >> 20) + 1;
        (room.min(1 << 40) * 64 / (64 + u64::from(self.load).min(1 << 20))).max(1)
    }

    /// How full it is, in thousandths.
    pub fn fill(&self) -> u64 {
        let used = u128::from(self.total.saturating_sub(self.free));
        (used * 1_000 / u128::from(self.total.max(1))) as u64
    }
}

/// Chooses servers for `goal` replicas, the primary first; fewer when there are not enough, `None` when there is
/// none. `avoid` are servers that are not to be chosen; where they are in the view, their zones and hosts count as
/// taken, so that what is chosen complements replicas that are there.
pub fn choose(view: &[ServerView], goal: u8, avoid: &[ServerId], seed: u64) -> Option<Vec<ServerId>> {
    let mut candidates: Vec<&ServerView> = view.iter().collect();
    candidates.sort_by_key(|server| server.server);
    candidates.dedup_by_key(|server| server.server);
    let mut taken = Taken::default();
    candidates.iter().filter(|server| avoid.contains(&server.server)).for_each(|server| taken.add(server));
    candidates.retain(|server| server.usable() && !avoid.contains(&server.server));
    let mut random = SplitMix64::new(seed);
    let mut chosen = Vec::with_capacity(usize::from(goal));
    while chosen.len() < usize::from(goal.max(1)) {
        let Some(best) = candidates.iter().map(|server| taken.crowding(server)).min() else { break };
        let equals = || candidates.iter().filter(|server| taken.crowding(server) == best);
        let sum: u64 = equals().map(|server| server.weight()).sum();
        let mut ticket = random.below(sum);
        let winner = equals().find(|server| {
            let weight = server.weight();
            let wins = ticket < weight;
            ticket = ticket.saturating_sub(weight);
            wins
        });
        let Some(winner) = winner.copied() else { break };
        taken.add(winner);
        chosen.push(winner.server);
        candidates.retain(|server| server.server != winner.server);
    }
    (!chosen.is_empty()).then_some(chosen)
}

/// How many replicas each failure domain has.
#[derive(Default)]
struct Taken<'a> {
    zones: BTreeMap<&'a str, u32>,
    hosts: BTreeMap<(&'a str, &'a str), u32>,
}

impl<'a> Taken<'a> {
    fn add(&mut self, server: &'a ServerView) {
        *self.zones.entry(&server.zone).or_insert(0) += 1;
        if !server.host.is_empty() {
            *self.hosts.entry((&server.zone, &server.host)).or_insert(0) += 1;
        }
    }

    /// The fewer replicas in its zone and on its host, the better.
    fn crowding(&self, server: &ServerView) -> (u32, u32) {
        let zone = self.zones.get(server.zone.as_str()).copied().unwrap_or(0);
        let host = self.hosts.get(&(server.zone.as_str(), server.host.as_str())).copied().unwrap_or(0);
        (zone, host)
    }
}

/// A seed for the `number`th choice made under one stamp.
pub fn derived_seed(seed: u64, number: u64) -> u64 {
    SplitMix64::new(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95)).draw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const GIB: u64 = 1 << 30;

    fn server(number: u16, zone: &str, host: &str) -> ServerView {
        ServerView {
            server: ServerId(number),
            zone: zone.into(),
            host: host.into(),
            total: 100 * GIB,
            free: 50 * GIB,
            reserve: GIB,
            load: 0,
            online: true,
            draining: false,
            shunned: false,
        }
    }

    fn nine() -> Vec<ServerView> {
        (1..=9).map(|number| server(number, ["a", "b", "c"][usize::from(number) % 3], &format!("h{number}"))).collect()
    }

    #[test]
    fn replicas_lie_in_different_zones_when_there_are_enough() {
        let view = nine();
        for seed in 0..2_000 {
            let chosen = choose(&view, 3, &[], seed).unwrap();
            let zones: BTreeSet<u16> = chosen.iter().map(|server| server.0 % 3).collect();
            assert_eq!(zones.len(), 3, "seed {seed}: {chosen:?}");
        }
    }

    #[test]
    fn replicas_lie_on_different_hosts_when_zones_do_not_suffice() {
        let view: Vec<_> = (1..=6).map(|number| server(number, "", ["x", "y", "z"][usize::from(number) % 3])).collect();
        for seed in 0..2_000 {
            let chosen = choose(&view, 3, &[], seed).unwrap();
            let hosts: BTreeSet<u16> = chosen.iter().map(|server| server.0 % 3).collect();
            assert_eq!(hosts.len(), 3, "seed {seed}: {chosen:?}");
        }
    }

    #[test]
    fn a_recruit_goes_where_no_replica_is() {
        let view = nine();
        for seed in 0..500 {
            let chosen = choose(&view, 1, &[ServerId(1), ServerId(2)], seed).unwrap();
            assert_eq!(chosen[0].0 % 3, 0, "seed {seed}: {chosen:?}");
        }
    }

    #[test]
    fn primaries_and_replicas_are_balanced_over_equal_servers() {
        let view = nine();
        let (mut primaries, mut replicas) = ([0_u32; 10], [0_u32; 10]);
        for seed in 0..9_000 {
            let chosen = choose(&view, 3, &[], derived_seed(77, seed)).unwrap();
            primaries[usize::from(chosen[0].0)] += 1;
            chosen.iter().for_each(|server| replicas[usize::from(server.0)] += 1);
        }
        for number in 1..=9 {
            assert!((850..1_150).contains(&primaries[number]), "primaries {primaries:?}");
            assert!((2_800..3_200).contains(&replicas[number]), "replicas {replicas:?}");
        }
    }

    #[test]
    fn free_space_and_load_move_the_choice() {
        let mut view: Vec<_> = (1..=3).map(|number| server(number, "", &format!("h{number}"))).collect();
        view[0].free = 11 * GIB;
        view[1].free = 41 * GIB;
        view[2].free = 41 * GIB;
        view[2].load = 192;
        let mut counts = [0_u32; 4];
        for seed in 0..6_000 {
            counts[usize::from(choose(&view, 1, &[], seed).unwrap()[0].0)] += 1;
        }
        // Weights 10 : 40 : 10.
        assert!((800..1_200).contains(&counts[1]), "{counts:?}");
        assert!((3_700..4_300).contains(&counts[2]), "{counts:?}");
        assert!((800..1_200).contains(&counts[3]), "{counts:?}");
    }

    #[test]
    fn unusable_servers_are_never_chosen_and_fewer_than_the_goal_is_an_answer() {
        let mut view = nine();
        for (number, server) in view.iter_mut().enumerate() {
            match number {
                0 => {}
                1 | 2 => server.online = false,
                3..=5 => server.draining = true,
                _ => server.free = server.reserve,
            }
        }
        assert_eq!(choose(&view, 3, &[], 5), Some(vec![ServerId(1)]));
        assert_eq!(choose(&view, 3, &[ServerId(1)], 5), None);
        assert_eq!(choose(&[], 3, &[], 5), None);
    }

    #[test]
    fn the_choice_depends_on_the_arguments_alone() {
        let view = nine();
        let mut reversed = view.clone();
        reversed.reverse();
        for seed in 0..100 {
            assert_eq!(choose(&view, 3, &[], seed), choose(&reversed, 3, &[], seed));
        }
    }
}
