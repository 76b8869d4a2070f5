//! Feeds the measurements while an image is read or written: on threads beside whoever does that if the image is large, else in
//! its place. Each digest has a thread of its own, because each costs as much as reading and the checksum do many times over.
//!
//! These are the only threads that the crate starts. They end with the feed.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use crate::measure::{ApplicationDigest, ImageDigest, Measured, Measurer, Part};

/// How many bytes are best given at a time: enough that handing them over costs nothing, few enough that they stay in a cache.
pub(crate) const CHUNK: usize = 128 << 10;

/// So many bytes are measured in place before there are threads: fewer are measured faster than a thread starts.
const SMALL: usize = 1 << 20;

/// How many buffers may wait for a thread, so that two threads and a reader on two processors find a processor each time that one
/// of them waits.
const WAITING: usize = 16;

/// What the threads are told, in order. The last one that has seen a buffer gives it back.
#[derive(Clone)]
enum Step {
    BeginRamdisk,
    Bytes(Measured, Arc<Vec<u8>>),
}

/// Where an image's bytes go to be measured, in their order.
pub(crate) enum Feed {
    /// Measured by whoever reads, up to so many bytes more.
    Here { measurer: Box<Measurer>, spare: Vec<u8>, left: usize },
    /// Measured by threads, which give the buffers back.
    Beside { image: Worker<ImageDigest>, application: Worker<ApplicationDigest>, spare: Receiver<Vec<u8>> },
}

/// A thread that takes one of the digests.
pub(crate) struct Worker<P> {
    steps: SyncSender<Step>,
    thread: JoinHandle<P>,
}

impl<P: Part + Send + 'static> Worker<P> {
    fn start(name: &str, mut part: P, done: SyncSender<Vec<u8>>) -> Option<Self> {
        let (steps, to_do) = sync_channel(WAITING);
        let measure = move || {
            while let Ok(step) = to_do.recv() {
                match step {
                    Step::BeginRamdisk => part.begin_ramdisk(),
                    Step::Bytes(measured, bytes) => {
                        part.update(measured, &bytes);
                        if let Some(buffer) = Arc::into_inner(bytes) {
                            // The reader may be gone already, with an error.
                            let _ = done.try_send(buffer);
                        }
                    }
                }
            }
            part
        };
        let thread = Builder::new().name(name.to_owned()).spawn(measure).ok()?;
        Some(Self { steps, thread })
    }

    fn send(&self, step: Step) {
        self.steps.send(step).expect("a measuring thread ends after its reader");
    }

    fn finish(self) -> P {
        drop(self.steps);
        self.thread.join().expect("a measuring thread does not panic")
    }
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
        // As many as can be under way, so that giving one back never blocks.
        let (done, spare) = sync_channel(WAITING + 2);
        let (image, application) = measurer.parts();
        match (Worker::start("measure PCR0", image, done.clone()), Worker::start("measure PCR2", application, done)) {
            (Some(image), Some(application)) => *self = Self::Beside { image, application, spare },
            _ => *left = usize::MAX,
        }
    }

    /// Starts the next ramdisk.
    pub(crate) fn begin_ramdisk(&mut self) {
        match self {
            Self::Here { measurer, .. } => measurer.begin_ramdisk(),
            Self::Beside { image, application, .. } => {
                image.send(Step::BeginRamdisk);
                application.send(Step::BeginRamdisk);
            }
        }
    }

    /// A buffer for [`give`](Self::give), with whatever was in it before.
    pub(crate) fn buffer(&mut self) -> Vec<u8> {
        match self {
            Self::Here { spare, .. } => std::mem::take(spare),
            // None has come back yet.
            Self::Beside { spare, .. } => spare.try_recv().unwrap_or_default(),
        }
    }

    /// Measures the bytes of a buffer, or nothing of them, and has the buffer back.
    pub(crate) fn give(&mut self, measured: Option<Measured>, bytes: Vec<u8>) {
        let Some(measured) = measured else {
            if let Self::Here { spare, .. } = self {
                *spare = bytes;
            }
            return;
        };
        if let Self::Beside { image, application, .. } = self {
            let step = Step::Bytes(measured, Arc::new(bytes));
            application.send(step.clone());
            image.send(step);
            return;
        }
        self.measure_here(measured, &bytes);
        if let Self::Here { spare, .. } = self {
            *spare = bytes;
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
            Self::Beside { image, application, spare: _ } => Measurer::of(image.finish(), application.finish()),
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
        let mut beside = Feed::new();
        fill(&mut beside);
        assert!(matches!((&here, &beside), (Feed::Here { .. }, Feed::Beside { .. })));
        assert_eq!(here.finish().measurements(), beside.finish().measurements());
    }
}
