//! Feeds the measurements while an image is read: on a thread beside the reader if the image is large, else in its place.
//!
//! This is the one thread that the crate starts. It lives no longer than the call that reads the image.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use crate::measure::Measurer;

/// Files smaller than this are measured faster than a thread starts.
const SMALL: u64 = 4 << 20;

/// How many buffers may wait to be measured. With the reader's own they must fit into a cache.
const WAITING: usize = 4;

/// What a section's bytes are measured as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measured {
    /// A kernel or a command line.
    Boot,
    /// A ramdisk.
    Ramdisk,
}

/// What the thread is told, in order.
pub(crate) enum Step {
    BeginRamdisk,
    Bytes(Measured, Vec<u8>),
}

fn take(measurer: &mut Measurer, measured: Measured, bytes: &[u8]) {
    match measured {
        Measured::Boot => measurer.update(bytes),
        Measured::Ramdisk => measurer.update_ramdisk(bytes),
    }
}

/// Where an image's bytes go to be measured, in their order.
pub(crate) enum Feed<'scope> {
    /// Measured by whoever reads.
    Here { measurer: Box<Measurer>, spare: Vec<u8> },
    /// Measured by a thread, which gives the buffers back.
    Beside { steps: SyncSender<Step>, spare: Receiver<Vec<u8>>, thread: ScopedJoinHandle<'scope, Measurer> },
}

impl<'scope> Feed<'scope> {
    /// A feed for measuring as the bytes are read.
    pub(crate) fn here() -> Self {
        Self::Here { measurer: Box::default(), spare: Vec::new() }
    }

    /// A feed for a file of this size, with a thread if that is worth one and the host has one to give.
    pub(crate) fn beside<'env>(scope: &'scope Scope<'scope, 'env>, file_size: u64) -> Self {
        if file_size < SMALL {
            return Self::here();
        }
        let (steps, to_do) = sync_channel(WAITING);
        // As many as can be under way, so that giving one back never blocks.
        let (done, spare) = sync_channel(WAITING + 2);
        let measure = move || {
            let mut measurer = Measurer::default();
            while let Ok(step) = to_do.recv() {
                match step {
                    Step::BeginRamdisk => measurer.begin_ramdisk(),
                    Step::Bytes(measured, bytes) => {
                        take(&mut measurer, measured, &bytes);
                        // The reader may be gone already, with an error.
                        let _ = done.try_send(bytes);
                    }
                }
            }
            measurer
        };
        match Builder::new().name("measure".to_owned()).spawn_scoped(scope, measure) {
            Ok(thread) => Self::Beside { steps, spare, thread },
            Err(_) => Self::here(),
        }
    }

    /// Starts the next ramdisk.
    pub(crate) fn begin_ramdisk(&mut self) {
        match self {
            Self::Here { measurer, .. } => measurer.begin_ramdisk(),
            Self::Beside { steps, .. } => send(steps, Step::BeginRamdisk),
        }
    }

    /// An empty buffer, for [`give`](Self::give).
    pub(crate) fn buffer(&mut self) -> Vec<u8> {
        let mut buffer = match self {
            Self::Here { spare, .. } => std::mem::take(spare),
            // None has come back yet.
            Self::Beside { spare, .. } => spare.try_recv().unwrap_or_default(),
        };
        buffer.clear();
        buffer
    }

    /// Measures the bytes of a buffer, or nothing of them, and has the buffer back.
    pub(crate) fn give(&mut self, measured: Option<Measured>, bytes: Vec<u8>) {
        match (self, measured) {
            (Self::Here { measurer, spare }, measured) => {
                if let Some(measured) = measured {
                    take(measurer, measured, &bytes);
                }
                *spare = bytes;
            }
            (Self::Beside { steps, .. }, Some(measured)) => send(steps, Step::Bytes(measured, bytes)),
            (Self::Beside { .. }, None) => (),
        }
    }

    /// Measures bytes that the reader keeps.
    pub(crate) fn lend(&mut self, measured: Measured, bytes: &[u8]) {
        match self {
            Self::Here { measurer, .. } => take(measurer, measured, bytes),
            Self::Beside { steps, .. } => send(steps, Step::Bytes(measured, bytes.to_vec())),
        }
    }

    /// The measurements, once all bytes have been taken.
    pub(crate) fn finish(self) -> Measurer {
        match self {
            Self::Here { measurer, .. } => *measurer,
            Self::Beside { steps, spare: _, thread } => {
                drop(steps);
                thread.join().expect("the measuring thread does not panic")
            }
        }
    }
}

fn send(steps: &SyncSender<Step>, step: Step) {
    steps.send(step).expect("the measuring thread ends after its reader");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_measures_what_the_reader_itself_would() {
        let parts: Vec<Vec<u8>> = (0..40_u8).map(|number| vec![number; 1 + usize::from(number) * 97]).collect();
        let fill = |feed: &mut Feed<'_>| {
            for (number, part) in parts.iter().enumerate() {
                if number % 10 == 9 {
                    feed.begin_ramdisk();
                }
                let measured = if number < 9 { Measured::Boot } else { Measured::Ramdisk };
                if number % 3 == 0 {
                    feed.lend(measured, part);
                } else {
                    let mut buffer = feed.buffer();
                    assert!(buffer.is_empty());
                    buffer.extend_from_slice(part);
                    feed.give(Some(measured), buffer);
                }
            }
        };
        let mut here = Feed::here();
        fill(&mut here);
        let beside = std::thread::scope(|scope| {
            let mut beside = Feed::beside(scope, SMALL);
            assert!(matches!(beside, Feed::Beside { .. }));
            fill(&mut beside);
            beside.finish()
        });
        assert_eq!(here.finish().measurements(), beside.measurements());
    }
}
