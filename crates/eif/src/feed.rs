//! Feeds the measurements while an image is read or written: on threads beside whoever does that if the image is large, else in
//! its place.
//!
//! Each digest costs as much as reading and the checksum do many times over, and neither can be divided, so there are two things to
//! do at once: the digests are lanes, each with its steps in order, and whoever has nothing else to do takes a lane that nobody is
//! at and does its next step. That is a thread for each processor but the caller's, at most one a digest, and the caller where it
//! would else wait for them. So two processors are busy with two digests whatever else the caller does, and neither is waited for
//! while there is a step to do.
//!
//! These are the only threads that the crate starts. They end with the feed.
//!
//! DEVNOTE: A thread a digest, fed by a channel each, was 1.19 times OpenSSL's time for one digest where this is 1.09 (256 MiB, two
//! busy processors): the reader is a third thread there, and each waits for the others. The caller as the one who takes PCR0's
//! digest needs no third thread, but is late by all that reading and the checksum take, and its partner waits for it: 1.17. A mapped
//! file would save the copy of its bytes, which is a sixteenth of the work, and kill the process if the file is truncated
//! meanwhile. Digests that read the file themselves would need two readers where `Read + Seek` is one.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle, available_parallelism};

use crate::measure::{ApplicationDigest, ImageDigest, Measured, Measurer, Part};

/// How many bytes are best given at a time: enough that handing them over costs nothing, few enough that they stay in a cache.
pub(crate) const CHUNK: usize = 128 << 10;

/// So many bytes are measured in place before there are threads: fewer are measured faster than a thread starts.
const SMALL: usize = 1 << 20;

/// How many steps may wait in a lane before the caller does some of them: as many as keep everybody busy while one that has a lane
/// is without a processor for some milliseconds. With three, an image on two busy processors takes a tenth longer.
const WAITING: usize = 16;

/// What is to be done in a lane. The last one that has seen a buffer gives it back.
#[derive(Clone)]
enum Step {
    BeginRamdisk,
    Bytes(Measured, Arc<Vec<u8>>),
}

/// One digest, and what it has not seen yet.
struct Lane<P> {
    /// Nothing while somebody is at it.
    part: Option<P>,
    steps: VecDeque<Step>,
}

impl<P> Lane<P> {
    fn of(part: P) -> Self {
        Self { part: Some(part), steps: VecDeque::new() }
    }

    /// How many steps could be done now.
    fn ready(&self) -> usize {
        if self.part.is_some() { self.steps.len() } else { 0 }
    }
}

struct State {
    image: Lane<ImageDigest>,
    application: Lane<ApplicationDigest>,
    /// Buffers that both digests have seen.
    spare: Vec<Vec<u8>>,
    /// How many threads wait for a step.
    idle: usize,
    /// The most steps that the caller would find in a lane, if it waits for that.
    awaited: Option<usize>,
    ended: bool,
}

impl State {
    /// The steps in the fuller lane.
    fn waiting(&self) -> usize {
        self.image.steps.len().max(self.application.steps.len())
    }
}

/// The lanes, for whoever has time for them.
struct Lanes {
    state: Mutex<State>,
    /// There is a step for a thread, or an end.
    more: Condvar,
    /// There is what the caller waits for.
    less: Condvar,
}

impl Lanes {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the next step of the fuller lane of those that are free; false if there is none.
    fn step<'a>(&'a self, state: MutexGuard<'a, State>) -> (MutexGuard<'a, State>, bool) {
        if state.image.ready().max(state.application.ready()) == 0 {
            (state, false)
        } else if state.image.ready() >= state.application.ready() {
            (self.step_in(state, |state| &mut state.image), true)
        } else {
            (self.step_in(state, |state| &mut state.application), true)
        }
    }

    fn step_in<'a, P: Part>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        lane: fn(&mut State) -> &mut Lane<P>,
    ) -> MutexGuard<'a, State> {
        let Lane { part, steps } = lane(&mut state);
        let (Some(mut digest), Some(step)) = (part.take(), steps.pop_front()) else {
            unreachable!("the lane has a step and is free")
        };
        drop(state);
        let buffer = match step {
            Step::BeginRamdisk => {
                digest.begin_ramdisk();
                None
            }
            Step::Bytes(measured, bytes) => {
                digest.update(measured, &bytes);
                Arc::into_inner(bytes)
            }
        };
        let mut state = self.lock();
        lane(&mut state).part = Some(digest);
        state.spare.extend(buffer);
        if state.awaited.is_some_and(|enough| state.waiting() <= enough) {
            self.less.notify_one();
        }
        state
    }

    /// What a thread does.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            let done;
            (state, done) = self.step(state);
            if state.ended {
                return;
            }
            if !done {
                state.idle += 1;
                state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}

/// Threads beside the caller, and what they work at.
pub(crate) struct Beside {
    lanes: Arc<Lanes>,
    threads: Vec<JoinHandle<()>>,
}

impl Beside {
    /// Starts so many threads, or as many as the host gives; nothing if that is none.
    fn start(measurer: &Measurer, threads: usize) -> Option<Self> {
        let (image, application) = measurer.parts();
        let lanes = Arc::new(Lanes {
            state: Mutex::new(State {
                image: Lane::of(image),
                application: Lane::of(application),
                spare: Vec::new(),
                idle: 0,
                awaited: None,
                ended: false,
            }),
            more: Condvar::new(),
            less: Condvar::new(),
        });
        let start = |_| {
            let lanes = Arc::clone(&lanes);
            Builder::new().name("measure".to_owned()).spawn(move || lanes.work()).ok()
        };
        let threads: Vec<_> = (0..threads).map_while(start).collect();
        (!threads.is_empty()).then_some(Self { lanes, threads })
    }

    /// Puts a step at the end of both lanes, and does some if there are too many.
    fn add(&self, step: Step) {
        let mut state = self.lanes.lock();
        state.image.steps.push_back(step.clone());
        state.application.steps.push_back(step);
        if state.idle > 0 {
            self.lanes.more.notify_all();
        }
        while state.waiting() > WAITING {
            state = self.help(state, WAITING / 2);
        }
    }

    /// Does a step; or, if others are at all that is to be done, waits until no lane has more than so many.
    fn help<'a>(&'a self, state: MutexGuard<'a, State>, enough: usize) -> MutexGuard<'a, State> {
        let (mut state, done) = self.lanes.step(state);
        if !done {
            state.awaited = Some(enough);
            state = self.lanes.less.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.awaited = None;
        }
        state
    }

    /// Both digests, once they have seen everything.
    fn finish(self) -> Measurer {
        let mut state = self.lanes.lock();
        loop {
            if state.waiting() == 0
                && let (Some(image), Some(application)) = (&state.image.part, &state.application.part)
            {
                return Measurer::of(image.clone(), application.clone());
            }
            state = self.help(state, 0);
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let mut state = self.lanes.lock();
        state.ended = true;
        drop(state);
        self.lanes.more.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Where an image's bytes go to be measured, in their order.
pub(crate) enum Feed {
    /// Measured by whoever reads, up to so many bytes more.
    Here { measurer: Box<Measurer>, spare: Vec<u8>, left: usize },
    /// Measured by threads and whoever reads.
    Beside(Beside),
}

impl Feed {
    /// A feed that has measured nothing yet.
    pub(crate) fn new() -> Self {
        Self::Here { measurer: Box::default(), spare: Vec::new(), left: SMALL }
    }

    /// Measures in place, and goes on with threads if that was much and the host has threads to give.
    fn measure_here(&mut self, measured: Measured, bytes: &[u8]) {
        let Self::Here { measurer, left, .. } = self else { return };
        measurer.update(measured, bytes);
        if *left >= bytes.len() {
            *left -= bytes.len();
            return;
        }
        // One processor is the caller's, and more than two have nothing to do.
        let others = available_parallelism().map_or(0, |processors| processors.get() - 1);
        match Beside::start(measurer, others.min(2)) {
            Some(beside) => *self = Self::Beside(beside),
            None => *left = usize::MAX,
        }
    }

    /// Starts the next ramdisk.
    pub(crate) fn begin_ramdisk(&mut self) {
        match self {
            Self::Here { measurer, .. } => measurer.begin_ramdisk(),
            Self::Beside(beside) => beside.add(Step::BeginRamdisk),
        }
    }

    /// A buffer for [`give`](Self::give), with whatever was in it before.
    pub(crate) fn buffer(&mut self) -> Vec<u8> {
        match self {
            Self::Here { spare, .. } => std::mem::take(spare),
            // At first none has come back yet. The last one that did is the likeliest to be in a cache.
            Self::Beside(beside) => beside.lanes.lock().spare.pop().unwrap_or_default(),
        }
    }

    /// Measures the bytes of a buffer, or nothing of them, and has the buffer back.
    pub(crate) fn give(&mut self, measured: Option<Measured>, bytes: Vec<u8>) {
        if let (Self::Beside(beside), Some(measured)) = (&*self, measured) {
            beside.add(Step::Bytes(measured, Arc::new(bytes)));
            return;
        }
        if let Some(measured) = measured {
            self.measure_here(measured, &bytes);
        }
        match self {
            Self::Here { spare, .. } => *spare = bytes,
            Self::Beside(beside) => beside.lanes.lock().spare.push(bytes),
        }
    }

    /// Measures bytes that the caller keeps.
    pub(crate) fn lend(&mut self, measured: Measured, bytes: &[u8]) {
        for chunk in bytes.chunks(CHUNK) {
            if let Self::Here { .. } = self {
                self.measure_here(measured, chunk);
                continue;
            }
            let mut buffer = self.buffer();
            buffer.clear();
            buffer.extend_from_slice(chunk);
            self.give(Some(measured), buffer);
        }
    }

    /// The measurements, once all bytes have been taken.
    pub(crate) fn finish(self) -> Measurer {
        match self {
            Self::Here { measurer, .. } => *measurer,
            Self::Beside(beside) => beside.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_measure_what_the_reader_itself_would() {
        let parts: Vec<Vec<u8>> = (0..40_u8).map(|number| vec![number; 1 + usize::from(number) * 9700]).collect();
        let fill = |feed: &mut Feed| {
            for (number, part) in parts.iter().enumerate() {
                if number % 10 == 9 {
                    feed.begin_ramdisk();
                }
                let measured = if number < 9 { Measured::Boot } else { Measured::Ramdisk };
                if number % 3 == 0 {
                    feed.lend(measured, part);
                } else {
                    let mut buffer = feed.buffer();
                    buffer.clear();
                    buffer.extend_from_slice(part);
                    feed.give(Some(measured), buffer);
                }
            }
        };
        let mut here = Feed::new();
        let Feed::Here { left, .. } = &mut here else { panic!("it starts in place") };
        *left = usize::MAX;
        fill(&mut here);
        let expected = here.finish().measurements();
        for threads in [1, 2] {
            let mut beside = Feed::Beside(Beside::start(&Measurer::default(), threads).unwrap());
            fill(&mut beside);
            assert_eq!(beside.finish().measurements(), expected, "{threads} threads");
        }
        let mut large = Feed::new();
        fill(&mut large);
        let threads = if let Feed::Beside(beside) = &large { beside.threads.len() } else { 0 };
        let processors = available_parallelism().map_or(1, std::num::NonZero::get);
        assert_eq!(threads, (processors - 1).min(2));
        assert_eq!(large.finish().measurements(), expected);
    }

    #[test]
    fn a_feed_that_is_given_up_ends_its_threads() {
        let beside = Beside::start(&Measurer::default(), 2).unwrap();
        let lanes = Arc::downgrade(&beside.lanes);
        let mut feed = Feed::Beside(beside);
        feed.lend(Measured::Boot, &vec![1; 10 * CHUNK]);
        drop(feed);
        assert!(lanes.upgrade().is_none());
    }
}
