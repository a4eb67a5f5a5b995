//! One session that asks the state, each thing at a time of its own.

use crate::ids::{ClusterId, OperationId, SessionId};
use crate::meta::command::{Command, CommandReply, Stamp};
use crate::meta::request::{ClientCommand, Credentials, Reply, Request, Timestamp};
use crate::meta::state::State;

pub(in crate::meta) struct Master {
    pub(in crate::meta) state: State,
    pub(in crate::meta) session: SessionId,
    operation: u64,
    who: Credentials,
}

impl Master {
    /// That asks as `who` unless it says otherwise.
    pub(in crate::meta) fn new(who: Credentials) -> Self {
        let mut state = State::format(ClusterId(1), 1 << 20, 1, 0o777, Timestamp(1));
        let open = Command::OpenSession { nonce: 1, description: String::new() };
        let stamp = Stamp { now: Timestamp(1), seed: 0 };
        let CommandReply::Session(session) = state.apply(stamp, &open) else { panic!("no session") };
        Self { state, session, operation: 0, who }
    }

    pub(in crate::meta) fn ask(&mut self, now: i64, request: Request) -> Reply {
        self.ask_as(&self.who.clone(), now, request)
    }

    pub(in crate::meta) fn ask_as(&mut self, credentials: &Credentials, now: i64, request: Request) -> Reply {
        self.operation += 1;
        let id = OperationId { session: self.session, operation: self.operation };
        let command = ClientCommand { id, confirmed: 0, credentials: credentials.clone(), request };
        match self.state.apply(Stamp { now: Timestamp(now), seed: 0 }, &Command::Client(command)) {
            CommandReply::Client(reply) => reply,
            other => panic!("{other:?}"),
        }
    }
}
