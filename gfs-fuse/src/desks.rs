//! Requests that are worked on by the threads that took them, and may get stuck there.
//!
//! A thread of the session that reads a local disk by itself saves two hand-overs, but a disk may hang. So there are only a few desks for
//! such work, fewer than threads, and what lies on one for too long is taken away by somebody else, who answers it in another way. Exactly
//! one of the two gets it. This room knows neither the transport nor what the requests are.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How many requests are worked on in this way at a time.
pub const DESKS: usize = 6;
/// One that takes longer is taken away.
const LATE: Duration = Duration::from_millis(100);
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(40);

/// Desks for requests `T`.
pub struct Desks<T> {
    desks: [Mutex<Desk<T>>; DESKS],
    /// Somebody looks at the desks.
    watched: AtomicBool,
    begun: Notify,
}

struct Desk<T> {
    /// Somebody sits here, also when the request was taken away.
    taken: bool,
    request: Option<(Instant, T)>,
}

/// A place at a desk.
pub struct Seat<'a, T> {
    desk: &'a Mutex<Desk<T>>,
}

impl<T> Default for Desks<T> {
    fn default() -> Self {
        let desk = || Mutex::new(Desk { taken: false, request: None });
        Self { desks: std::array::from_fn(|_| desk()), watched: AtomicBool::new(false), begun: Notify::new() }
    }
}

impl<T> Desks<T> {
    /// Puts a request on a desk, or gives it back when none is free.
    pub fn sit_down(&self, request: T) -> Result<Seat<'_, T>, T> {
        for desk in &self.desks {
            let Some(mut free) = desk.try_lock() else { continue };
            if free.taken {
                continue;
            }
            *free = Desk { taken: true, request: Some((Instant::now(), request)) };
            drop(free);
            if !self.watched.swap(true, Ordering::AcqRel) {
                self.begun.notify_one();
            }
            return Ok(Seat { desk });
        }
        Err(request)
    }

    /// Takes away what has lain on a desk for `late`, and says whether there is anything else.
    fn take_late(&self, late: Duration) -> (Vec<T>, bool) {
        let (mut taken, mut more) = (Vec::new(), false);
        for desk in &self.desks {
            let mut desk = desk.lock();
            match &desk.request {
                Some((since, _)) if since.elapsed() >= late => {
                    taken.extend(desk.request.take().map(|(_, request)| request));
                }
                Some(_) => more = true,
                None => {}
            }
        }
        (taken, more)
    }

    /// Looks at the desks as long as anything lies there, and has `answer` called with what is late. Never returns.
    pub async fn watch(&self, answer: impl Fn(T)) {
        loop {
            self.begun.notified().await;
            loop {
                tokio::time::sleep(LOOK).await;
                // Before it is looked: who sits down after this rings again.
                self.watched.store(false, Ordering::Release);
                let (late, more) = self.take_late(LATE);
                late.into_iter().for_each(&answer);
                if !more {
                    break;
                }
            }
        }
    }
}

impl<T> Seat<'_, T> {
    /// Gets up, with the request unless it was taken away.
    pub fn get_up(self) -> Option<T> {
        self.desk.lock().request.take().map(|(_, request)| request)
    }
}

impl<T> Drop for Seat<'_, T> {
    fn drop(&mut self) {
        *self.desk.lock() = Desk { taken: false, request: None };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::sync::mpsc;

    #[test]
    fn a_request_is_got_by_one_alone() {
        let desks = Desks::default();
        let (one, two) = (desks.sit_down(1).ok().unwrap(), desks.sit_down(2).ok().unwrap());
        assert_eq!(one.get_up(), Some(1));
        assert_eq!(desks.take_late(Duration::from_secs(60)), (vec![], true));
        assert_eq!(desks.take_late(Duration::ZERO), (vec![2], false));
        assert_eq!(two.get_up(), None);
    }

    #[test]
    fn a_desk_stays_taken_until_its_owner_gets_up() {
        let desks = Desks::default();
        let mut seats: Vec<_> = (0..DESKS).map(|number| desks.sit_down(number).ok().unwrap()).collect();
        desks.take_late(Duration::ZERO);
        assert_eq!(desks.sit_down(9).err(), Some(9));
        seats.pop();
        assert!(desks.sit_down(9).is_ok());
    }

    #[tokio::test]
    async fn who_watches_gets_what_is_late_though_it_came_when_nobody_looked() {
        let desks = Arc::new(Desks::default());
        let (sender, mut late) = mpsc::unbounded_channel();
        let watched = desks.clone();
        let watch = tokio::spawn(async move { watched.watch(move |request| sender.send(request).unwrap()).await });
        for request in 1..=3 {
            let seat = desks.sit_down(request).ok().unwrap();
            assert_eq!(late.recv().await, Some(request));
            assert_eq!(seat.get_up(), None);
        }
        watch.abort();
    }
}
