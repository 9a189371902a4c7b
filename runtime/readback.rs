//! Reading results back while the device computes on.

use std::collections::VecDeque;
use std::sync::mpsc;
use std::time::Duration;

use wgpu::BufferUsages as Usage;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::exec::Recorder;

/// The most that is read in one piece.
pub(crate) const PIECE: u64 = 16 << 20;

const WHAT: &str = "a read-back";

/// How long a thread may take to hand over what it was told of another's buffer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A buffer that the host can map.
pub(crate) struct Staging {
    buffer: wgpu::Buffer,
}

impl Staging {
    pub fn new(device: &Device, bytes: u64) -> Result<Self> {
        let usage = Usage::MAP_READ | Usage::COPY_DST;
        let buffer = device.buffer("readback", bytes, usage, "ask for fewer outputs")?;
        Ok(Staging { buffer })
    }

    pub fn copy(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        from: &wgpu::Buffer,
        at: u64,
        bytes: u64,
    ) {
        self.copy_to(0, encoder, from, at, bytes);
    }

    /// As [`Staging::copy`], to the place `to`.
    pub fn copy_to(
        &self,
        to: u64,
        encoder: &mut wgpu::CommandEncoder,
        from: &wgpu::Buffer,
        at: u64,
        bytes: u64,
    ) {
        encoder.copy_buffer_to_buffer(from, at, &self.buffer, to, bytes);
    }

    /// Waits for `on` and gives the first `bytes` to `f`.
    pub fn read<T>(
        &self,
        device: &Device,
        bytes: u64,
        on: Option<wgpu::SubmissionIndex>,
        f: impl FnOnce(&[u8]) -> Result<T>,
    ) -> Result<T> {
        let out = self.map(device, bytes, on, f);
        // Also where that failed: the buffer is to be mapped again.
        let unmapped = device.scoped(WHAT, || self.buffer.unmap());
        let out = out?;
        unmapped?;
        Ok(out)
    }

    fn map<T>(
        &self,
        device: &Device,
        bytes: u64,
        on: Option<wgpu::SubmissionIndex>,
        f: impl FnOnce(&[u8]) -> Result<T>,
    ) -> Result<T> {
        let slice = self.buffer.slice(0..bytes);
        let (sender, receiver) = mpsc::channel();
        device.scoped(WHAT, || {
            slice.map_async(wgpu::MapMode::Read, move |outcome| {
                // Who no longer waits has failed otherwise.
                let _ = sender.send(outcome);
            });
        })?;
        device.wait(WHAT, on)?;
        let mut outcome = receiver.try_recv().ok();
        if outcome.is_none() {
            device.wait(WHAT, None)?;
            // Another thread that waits may be about to say it.
            outcome = receiver.recv_timeout(PATIENCE).ok();
        }
        let refused = |message: String| match device.check(WHAT) {
            // What the device was lost for is why.
            Err(error) => error,
            Ok(()) => Error::Refused {
                what: WHAT.to_owned(),
                message,
            },
        };
        match outcome {
            Some(Ok(())) => {}
            Some(Err(e)) => return Err(refused(e.to_string())),
            None => return Err(refused("the buffer was not mapped".to_owned())),
        }
        let view = slice.get_mapped_range();
        let view = view.map_err(|e| refused(e.to_string()))?;
        f(&view)
    }
}

/// A part of an output on its way to the host.
pub(crate) struct Part {
    /// Index of the output.
    pub output: usize,
    /// Where in the output it belongs, in bytes.
    pub offset: u64,
    pub bytes: u64,
}

/// What becomes of the parts.
pub(crate) type PartSink<'s> = dyn FnMut(&Part, &[u8]) -> Result<()> + 's;

/// Two staging buffers in turn: one is read while the other is filled.
pub(crate) struct ReadQueue {
    stagings: [Staging; 2],
    next: usize,
    pending: VecDeque<(usize, Part, Option<wgpu::SubmissionIndex>)>,
}

impl ReadQueue {
    /// For parts of at most `bytes`.
    pub fn new(device: &Device, bytes: u64) -> Result<Self> {
        Ok(ReadQueue {
            stagings: [Staging::new(device, bytes)?, Staging::new(device, bytes)?],
            next: 0,
            pending: VecDeque::new(),
        })
    }

    /// Copies a part from `from` at `at`, submits, and reads an earlier one if
    /// both buffers are taken.
    pub fn push(
        &mut self,
        device: &Device,
        recorder: &mut Recorder<'_>,
        from: (&wgpu::Buffer, u64),
        part: Part,
        sink: &mut PartSink<'_>,
    ) -> Result<()> {
        if self.pending.len() == self.stagings.len() {
            self.read_one(device, sink)?;
        }
        let slot = self.next;
        self.next = (slot + 1) % self.stagings.len();
        self.stagings[slot].copy(recorder.encoder(), from.0, from.1, part.bytes);
        let index = recorder.submit();
        self.pending.push_back((slot, part, index));
        Ok(())
    }

    fn read_one(&mut self, device: &Device, sink: &mut PartSink<'_>) -> Result<()> {
        let Some((slot, part, index)) = self.pending.pop_front() else {
            return Ok(());
        };
        self.stagings[slot].read(device, part.bytes, index, |bytes| sink(&part, bytes))
    }

    pub fn finish(mut self, device: &Device, sink: &mut PartSink<'_>) -> Result<()> {
        while !self.pending.is_empty() {
            self.read_one(device, sink)?;
        }
        Ok(())
    }
}
