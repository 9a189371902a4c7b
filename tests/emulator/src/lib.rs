//! An emulator of devices that run WGSL compute kernels, to test kernels that no adapter
//! at hand can run, and to find in all of them what no adapter promises to bear.
//!
//! All invocations of a launch, or of a workgroup of it, go through a kernel together, one
//! expression at a time; those that a branch leaves out are masked. That is an order that
//! a device might choose, with subgroups of any size, and with cooperative matrices, which
//! are computed element by element, accumulated in `f32`. What a kernel must not do ends
//! the launch with a [`Fault`]:
//!
//! - an index beyond the end of a buffer, an image or an array (devices are not asked to
//!   check),
//! - reading workgroup memory that was never written,
//! - two invocations that use the same element with no barrier between them, one of them
//!   to write it: in workgroup memory, in a buffer or an image within a workgroup, or
//!   across workgroups, where only an atomic that one releases and the other acquires
//!   orders them, behind the barrier for that memory, and only what is coherent is seen
//!   (all is on a CPU),
//! - a barrier that some invocations of a workgroup do not reach, a broadcast from an
//!   invocation that is not there, a cooperative operation of a subgroup in part,
//! - a loop without an end.
//!
//! ```
//! use kiln_emulator::{Device, Fault, Kernel};
//!
//! let kernel = Kernel::new(
//!     "@group(0) @binding(0) var<uniform> n: vec4<u32>;
//!      @group(0) @binding(1) var<storage, read_write> y: array<f32>;
//!      @compute @workgroup_size(32)
//!      fn main(@builtin(global_invocation_id) at: vec3<u32>) {
//!          y[at.x] = f32(at.x) * 0.5;
//!      }",
//! )?;
//! let mut device = Device::new(32);
//! let y = device.buffer(vec![0; 64]);
//! device.launch(&kernel, [2, 1, 1], &[64, 0, 0, 0], &[y])?;
//! assert_eq!(f32::from_bits(device.words(y)[63]), 31.5);
//!
//! let beyond = device.launch(&kernel, [3, 1, 1], &[64, 0, 0, 0], &[y]).unwrap_err();
//! assert!(matches!(beyond, Fault::OutOfBounds { index: 64, .. }), "{beyond}");
//! # Ok::<(), Fault>(())
//! ```
//!
//! [`Program`] runs the launch plans of compiled models.

mod device;
mod fault;
mod lanes;
mod launch;
mod memory;
mod program;
mod scalar;
mod types;

pub use device::{Buffer, Device, Kernel};
pub use fault::{Fault, Invocation};
pub use program::{On, Program, RunError, Session};
