//! The replication core under a model checker: every order of events of a small world, not a random one.
//!
//! Three servers, one client with two writes, one change of the configuration, and either a process that dies and comes back or a
//! message that is lost: both at once have more states than a test has time for. The servers are `gfs_core::replica::Replica` itself; the checker visits all states that such a world can reach.
//! Messages between two servers stay in order, as the driver promises; time is which step comes next, and a lease that the master
//! takes for over is one that its holder has given up before (rule 2). Recruiting is left to the seeds.

use gfs_core::breaks::{Break, Broken};
use gfs_core::ids::{Epoch, OperationId, Sequence, ServerId, SessionId};
use gfs_core::meta::request::Configuration;
use gfs_core::replica::{
    Action, Answer, Event, Loaded, Message, Mutation, OperationRecord, PreparedWrite, Replica, Role, Status, Token,
    WriteKind,
};
use stateright::{Checker, HasDiscoveries, Model, Property};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Writes of the client.
const WRITES: u64 = 2;

/// How much may happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Bounds {
    /// Requests of the client, over all writes.
    asks: u64,
    deaths: u8,
    losses: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Packet {
    Peer(Epoch, Configuration, Message),
    Answer(Epoch, Answer),
}

/// What survives the death of a process.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Disk {
    configuration: Option<Configuration>,
    /// What was committed: which operation, and the epoch in which it got its place.
    history: Vec<(OperationId, Epoch)>,
    prepared: BTreeMap<Sequence, PreparedWrite>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Server {
    replica: Option<Replica>,
    disk: Disk,
    leased: bool,
    retries: BTreeSet<ServerId>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    servers: Vec<Server>,
    lanes: BTreeMap<(ServerId, ServerId), VecDeque<Packet>>,
    configuration: Configuration,
    asks: u64,
    acknowledged: BTreeSet<u64>,
    deaths: u8,
    losses: u8,
    changes: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Step {
    Ask { operation: u64, server: ServerId, epoch: Epoch },
    Deliver(ServerId, ServerId),
    Lose(ServerId, ServerId),
    Retry(ServerId, ServerId),
    Die(ServerId),
    Start(ServerId),
    LeaseEnds(ServerId),
    Reconfigure { without: ServerId, primary: ServerId },
    Tell(ServerId),
}

struct Small {
    breaks: Broken,
    bounds: Bounds,
}

fn all() -> impl Iterator<Item = ServerId> {
    (1..=3).map(ServerId)
}

impl World {
    fn new(breaks: Broken) -> Self {
        let configuration =
            Configuration { epoch: Epoch(1), primary: ServerId(1), members: all().collect(), syncing: Vec::new() };
        let server = |id| {
            let mut replica = Replica::new(id, Loaded::default());
            replica.set_minimum(2);
            replica.break_rule(breaks);
            Server { replica: Some(replica), disk: Disk::default(), leased: true, retries: BTreeSet::new() }
        };
        let (servers, lanes, acknowledged) = (all().map(server).collect(), BTreeMap::new(), BTreeSet::new());
        let mut world = Self { servers, lanes, configuration, asks: 0, acknowledged, deaths: 0, losses: 0, changes: 0 };
        for id in all() {
            world.feed(id, Event::Lease(true));
            world.feed(id, Event::InForce(world.configuration.clone()));
        }
        // The first settle is not what this is about.
        while let Some((from, to)) = world.lanes.keys().next().copied() {
            world.deliver(from, to);
        }
        world
    }

    fn server(&mut self, id: ServerId) -> &mut Server {
        &mut self.servers[usize::from(id.0) - 1]
    }

    fn feed(&mut self, id: ServerId, event: Event) {
        let Some(replica) = &mut self.server(id).replica else { return };
        let mut actions: VecDeque<Action> = replica.handle(event).into();
        while let Some(action) = actions.pop_front() {
            if let Action::Store { write, .. } = action {
                self.server(id).disk.prepared.insert(write.sequence(), write);
                let Some(replica) = &mut self.server(id).replica else { return };
                for action in replica.handle(Event::Stored(Ok(()))).into_iter().rev() {
                    actions.push_front(action);
                }
            } else {
                self.perform(id, action);
            }
        }
    }

    fn perform(&mut self, id: ServerId, action: Action) {
        match action {
            Action::Persist(configuration) => self.server(id).disk.configuration = Some(configuration),
            Action::Commit(upto) => {
                let disk = &mut self.server(id).disk;
                let rest = disk.prepared.split_off(&upto.next());
                let done = std::mem::replace(&mut disk.prepared, rest);
                disk.history.extend(done.values().map(|write| (write.operation, write.version.epoch)));
            }
            Action::RollBack(above) => _ = self.server(id).disk.prepared.split_off(&above.next()),
            Action::Send { to, message } => {
                let Some(replica) = &self.server(id).replica else { return };
                let known = replica.configuration().cloned().unwrap_or_default();
                self.lanes.entry((id, to)).or_default().push_back(Packet::Peer(known.epoch, known, message));
            }
            Action::Reply { token, outcome } => match token.0 {
                // A client's token is its operation.
                operation @ 1..=WRITES if outcome.status == Status::Ok => _ = self.acknowledged.insert(operation),
                _ => {}
            },
            Action::RetryLater(server) => _ = self.server(id).retries.insert(server),
            Action::AskMaster | Action::Suspect(_) => {}
            other => unreachable!("nobody flushes or is filled here: {other:?}"),
        }
    }

    fn deliver(&mut self, from: ServerId, to: ServerId) {
        let Some(packet) = self.take(from, to) else { return };
        match packet {
            Packet::Peer(epoch, configuration, message) => {
                if self.server(to).replica.is_none() {
                    return self.feed(from, Event::Unreachable { server: to, epoch });
                }
                self.feed(to, Event::Configuration(configuration));
                self.answer(to, from, epoch, message);
            }
            Packet::Answer(epoch, answer) => self.feed(to, Event::Answer { from, epoch, answer }),
        }
    }

    /// The answer to a peer's message is the reply to its token, which is noted here and sent.
    fn answer(&mut self, to: ServerId, from: ServerId, epoch: Epoch, message: Message) {
        let settles = matches!(message, Message::Settle { .. });
        let notice = matches!(message, Message::Committed(_));
        let token = Token(1000);
        let Some(replica) = &mut self.server(to).replica else { return };
        let mut actions: VecDeque<Action> = replica.handle(Event::Peer { token: Some(token), epoch, message }).into();
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Store { write, .. } => {
                    self.server(to).disk.prepared.insert(write.sequence(), write);
                    let Some(replica) = &mut self.server(to).replica else { return };
                    actions.extend(replica.handle(Event::Stored(Ok(()))));
                }
                Action::Reply { token: Token(1000), outcome } if !notice => {
                    let answer = if settles { Answer::Settle(outcome) } else { Answer::Prepare(outcome) };
                    self.lanes.entry((to, from)).or_default().push_back(Packet::Answer(epoch, answer));
                }
                action => self.perform(to, action),
            }
        }
    }

    fn take(&mut self, from: ServerId, to: ServerId) -> Option<Packet> {
        let lane = self.lanes.get_mut(&(from, to))?;
        let packet = lane.pop_front();
        if lane.is_empty() {
            self.lanes.remove(&(from, to));
        }
        packet
    }

    fn start(&mut self, id: ServerId, breaks: Broken) {
        let disk = &self.server(id).disk;
        let record =
            |(sequence, operation): (Sequence, OperationId)| OperationRecord { operation, sequence, offset: 0 };
        let committed = (1..).map(Sequence).zip(disk.history.iter().map(|(operation, _)| *operation));
        let prepared = disk.prepared.values().map(|write| (write.sequence(), write.operation));
        let loaded = Loaded {
            configuration: disk.configuration.clone(),
            committed: Sequence(disk.history.len() as u64),
            prepared: disk.prepared.values().copied().collect(),
            length: 0,
            operations: committed.chain(prepared).map(record).collect(),
            ..Loaded::default()
        };
        let mut replica = Replica::new(id, loaded);
        replica.set_minimum(2);
        replica.break_rule(breaks);
        self.server(id).replica = Some(replica);
    }

    fn holds(&self, id: ServerId, operation: u64) -> bool {
        let disk = &self.servers[usize::from(id.0) - 1].disk;
        let prepared = disk.prepared.values().map(|write| write.operation);
        disk.history.iter().map(|(id, _)| *id).chain(prepared).any(|id| id.operation == operation)
    }

    fn step(&mut self, step: &Step, breaks: Broken) {
        match step.clone() {
            Step::Ask { operation, server, epoch } => {
                self.asks += 1;
                let id = OperationId { session: SessionId(7), operation };
                let mutation = Mutation::At { kind: WriteKind::Data, offset: 0, length: 1 };
                let token = Token(operation);
                self.feed(server, Event::Mutate { token, epoch, operation: id, confirmed: 0, mutation, fenced: false });
            }
            Step::Deliver(from, to) => self.deliver(from, to),
            Step::Lose(from, to) => {
                self.losses += 1;
                match self.take(from, to) {
                    Some(Packet::Peer(epoch, ..)) => self.feed(from, Event::Unreachable { server: to, epoch }),
                    Some(Packet::Answer(epoch, _)) => self.feed(to, Event::Unreachable { server: from, epoch }),
                    None => {}
                }
            }
            Step::Retry(id, other) => {
                self.server(id).retries.remove(&other);
                self.feed(id, Event::Retry(other));
            }
            Step::Die(id) => {
                self.deaths += 1;
                let server = self.server(id);
                (server.replica, server.leased) = (None, false);
                server.retries.clear();
                // What was on its way from it or to it goes with its connections.
                self.lanes.retain(|(from, to), _| *from != id && *to != id);
            }
            Step::Start(id) => self.start(id, breaks),
            Step::LeaseEnds(id) => {
                self.server(id).leased = false;
                self.feed(id, Event::Lease(false));
            }
            Step::Reconfigure { without, primary } => {
                self.changes += 1;
                self.configuration.epoch = self.configuration.epoch.next();
                self.configuration.members.retain(|server| *server != without);
                self.configuration.primary = primary;
            }
            Step::Tell(id) => {
                if !std::mem::replace(&mut self.server(id).leased, true) {
                    self.feed(id, Event::Lease(true));
                }
                self.feed(id, Event::InForce(self.configuration.clone()));
            }
        }
    }

    fn steps(&self, bounds: Bounds, steps: &mut Vec<Step>) {
        steps.extend(self.lanes.keys().map(|(from, to)| Step::Deliver(*from, *to)));
        if self.losses < bounds.losses {
            steps.extend(self.lanes.keys().map(|(from, to)| Step::Lose(*from, *to)));
        }
        let next = self.acknowledged.len() as u64 + 1;
        for (id, server) in all().zip(&self.servers) {
            steps.extend(server.retries.iter().map(|other| Step::Retry(id, *other)));
            let Some(replica) = &server.replica else {
                steps.push(Step::Start(id));
                continue;
            };
            if replica.role() == Role::Primary && self.asks < bounds.asks && next <= WRITES {
                steps.push(Step::Ask { operation: next, server: id, epoch: replica.epoch() });
            }
            if self.deaths < bounds.deaths {
                steps.push(Step::Die(id));
            }
            if server.leased && self.changes < 1 {
                steps.push(Step::LeaseEnds(id));
            }
            if !replica.is_in_force() || replica.epoch() != self.configuration.epoch {
                steps.push(Step::Tell(id));
            }
        }
        if self.changes < 1 {
            for without in all().filter(|id| !self.servers[usize::from(id.0) - 1].leased) {
                let keeps = self.configuration.primary != without;
                let leads = |id: &ServerId| *id != without && (!keeps || *id == self.configuration.primary);
                steps.extend(all().filter(leads).map(|primary| Step::Reconfigure { without, primary }));
            }
        }
    }

    fn histories_agree(&self) -> bool {
        let histories = || self.servers.iter().map(|server| &server.disk.history);
        histories().all(|one| histories().all(|other| one.iter().zip(other).all(|(a, b)| a == b)))
    }

    fn each_once(&self) -> bool {
        let once = |history: &Vec<(OperationId, Epoch)>| {
            history.iter().map(|(id, _)| id).collect::<BTreeSet<_>>().len() == history.len()
        };
        self.servers.iter().all(|server| once(&server.disk.history))
    }

    fn acknowledged_is_held(&self) -> bool {
        let held = |operation: &u64| self.configuration.members.iter().all(|id| self.holds(*id, *operation));
        self.acknowledged.iter().all(held)
    }

    fn one_primary_serves(&self) -> bool {
        let replicas = self.servers.iter().filter_map(|server| server.replica.as_ref());
        replicas.filter(|replica| replica.role() == Role::Primary && replica.is_serving()).count() <= 1
    }
}

impl Model for Small {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.breaks)]
    }

    fn actions(&self, state: &World, actions: &mut Vec<Step>) {
        state.steps(self.bounds, actions);
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut next = last.clone();
        next.step(&step, self.breaks);
        (next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("committed prefixes agree", |_, world: &World| world.histories_agree()),
            Property::always("a write takes one place", |_, world: &World| world.each_once()),
            Property::always("members hold what is acknowledged", |_, world: &World| world.acknowledged_is_held()),
            Property::always("one primary serves", |_, world: &World| world.one_primary_serves()),
            Property::sometimes("a write is acknowledged after the change", |_, world: &World| {
                world.changes == 1 && world.acknowledged.len() as u64 == WRITES
            }),
        ]
    }
}

/// Visits all states, or stops at the first that violates `until`.
fn check(breaks: Broken, (asks, deaths, losses): (u64, u8, u8), until: HasDiscoveries) -> impl Checker<Small> {
    let bounds = Bounds { asks, deaths, losses };
    let checker = Small { breaks, bounds }.checker().threads(2).finish_when(until).spawn_bfs().join();
    println!("{bounds:?}: {} states, {} of them different", checker.state_count(), checker.unique_state_count());
    checker
}

#[test]
fn no_order_of_events_breaks_replication() {
    for bounds in [(3, 0, 0), (2, 0, 1), (2, 1, 0)] {
        let checker = check(Broken::default(), bounds, HasDiscoveries::All);
        checker.assert_properties();
        assert!(checker.is_done() && checker.unique_state_count() > 10_000);
    }
}

#[test]
fn the_checker_finds_what_a_broken_rule_does() {
    for (rule, property, bounds) in [
        (Break::CommittedBeforeAll, "members hold what is acknowledged", (2, 0, 0)),
        (Break::RepeatApplied, "a write takes one place", (3, 0, 0)),
        (Break::ServedWithoutLease, "one primary serves", (2, 0, 0)),
        (Break::TailNotSettled, "committed prefixes agree", (2, 1, 0)),
    ] {
        let breaks = Broken::only(rule).unwrap_or_else(|| panic!("this build can't break rules"));
        let until = HasDiscoveries::AnyOf(BTreeSet::from([property]));
        let path = check(breaks, bounds, until).discovery(property);
        let path = path.unwrap_or_else(|| panic!("{rule:?} does not show in \"{property}\""));
        println!("{rule:?}: {} steps to \"{property}\"", path.into_actions().len());
    }
}
