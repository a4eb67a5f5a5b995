//! Facts about exactly once.

use super::*;

#[test]
fn a_repeat_gets_the_first_answer_and_changes_nothing() {
    let mut bench = Bench::new();
    let session = bench.session();
    let id = OperationId { session, operation: 1 };
    let first = bench.run_as(id, 0, create("f"));
    assert!(matches!(first, Reply::Entry { created: true, .. }));
    let before = bench.state.hash();
    assert_eq!(bench.run_as(id, 0, create("f")), first);
    assert_eq!(bench.state.replayed(id), Some(first));
    assert_eq!(bench.state.hash(), before);
}

#[test]
fn a_refusal_is_repeated_too() {
    let mut bench = Bench::new();
    let session = bench.session();
    let id = OperationId { session, operation: 5 };
    assert_eq!(bench.run_as(id, 0, unlink("f")), Reply::Refused(Refusal::NotFound));
    bench.create(session, "f");
    assert_eq!(bench.run_as(id, 0, unlink("f")), Reply::Refused(Refusal::NotFound));
    assert_eq!(bench.run_as(OperationId { session, operation: 6 }, 0, unlink("f")), Reply::Done);
}

#[test]
fn a_confirmed_operation_is_stale_and_not_applied_again() {
    let mut bench = Bench::new();
    let session = bench.session();
    let id = |operation| OperationId { session, operation };
    bench.run_as(id(1), 0, create("f"));
    bench.run_as(id(2), 1, unlink("f"));
    assert_eq!(bench.state.replayed(id(1)), None);
    assert_eq!(bench.run_as(id(1), 0, create("f")), STALE);
    assert_eq!(bench.state.namespace().counts().entries, 0);
}

#[test]
fn a_confirmation_does_not_cover_the_operation_that_carries_it() {
    let mut bench = Bench::new();
    let session = bench.session();
    let id = OperationId { session, operation: 1 };
    let first = bench.run_as(id, u64::MAX, create("f"));
    assert_eq!(bench.run_as(id, u64::MAX, create("f")), first);
}

#[test]
fn operations_may_come_in_any_order() {
    let mut bench = Bench::new();
    let session = bench.session();
    let id = |operation| OperationId { session, operation };
    for operation in [3, 1, 2] {
        let reply = bench.run_as(id(operation), 0, create(&format!("f{operation}")));
        assert!(matches!(reply, Reply::Entry { created: true, .. }));
    }
    assert_eq!(bench.state.namespace().counts().files, 3);
    assert_eq!(bench.run_as(id(0), 0, create("zero")), STALE);
}

#[test]
fn a_session_that_is_not_open_is_refused() {
    let mut bench = Bench::new();
    let session = bench.session();
    bench.apply(Command::EndSession { session });
    let expired = Reply::Refused(Refusal::SessionExpired);
    assert_eq!(bench.run(session, create("f")), expired);
    assert_eq!(bench.run(SessionId(99), create("f")), expired);
    assert_eq!(bench.state.namespace().counts().files, 0);
    assert_ne!(bench.session(), session);
}
