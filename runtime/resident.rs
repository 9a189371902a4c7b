//! Weights and buffers on the device, and their way there.

use kiln_ir::plan::{Access, TEXEL_BYTES, TEXELS_IN_ROW, texel_rows};
use wgpu::{BufferUsages, TextureUsages};

use crate::device::Device;
use crate::error::Result;

/// What a weight or a buffer of a plan is to the kernels that bind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    Buffer,
    Image,
}

impl Form {
    pub fn of_image(is_image: bool) -> Self {
        match is_image {
            true => Form::Image,
            false => Form::Buffer,
        }
    }
}

impl From<Access> for Form {
    fn from(access: Access) -> Self {
        Form::of_image(access.is_image())
    }
}

/// It on the device.
pub(crate) enum Resident {
    Buffer(wgpu::Buffer),
    Image(wgpu::Texture, wgpu::TextureView),
}

/// Bytes of a row of texels.
const ROW: usize = (TEXEL_BYTES * TEXELS_IN_ROW) as usize;

impl Resident {
    /// A place for `bytes`, zeroed.
    ///
    /// # Errors
    /// When it exceeds a limit, or memory runs out.
    pub fn new(
        device: &Device,
        name: &str,
        bytes: u64,
        form: Form,
        advice: &'static str,
    ) -> Result<Self> {
        Ok(match form {
            Form::Buffer => {
                let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
                Resident::Buffer(device.buffer(name, bytes, usage, advice)?)
            }
            Form::Image => {
                let usage = TextureUsages::STORAGE_BINDING | TextureUsages::COPY_DST;
                let texture = device.image(name, texel_rows(bytes), usage, advice)?;
                let view = texture.create_view(&wgpu::TextureViewDescriptor::default());
                Resident::Image(texture, view)
            }
        })
    }

    /// The buffer, unless it is an image.
    pub fn buffer(&self) -> Option<&wgpu::Buffer> {
        match self {
            Resident::Buffer(buffer) => Some(buffer),
            Resident::Image(..) => None,
        }
    }

    pub fn binding(&self) -> wgpu::BindingResource<'_> {
        match self {
            Resident::Buffer(buffer) => buffer.as_entire_binding(),
            Resident::Image(_, view) => wgpu::BindingResource::TextureView(view),
        }
    }

    /// Begins to fill it.
    pub fn filling<'a>(&'a self, queue: &'a wgpu::Queue) -> Filling<'a> {
        Filling {
            to: self,
            queue,
            done: 0,
            row: Vec::new(),
        }
    }
}

/// What is being filled.
pub(crate) struct Filling<'a> {
    to: &'a Resident,
    queue: &'a wgpu::Queue,
    /// Bytes that are written.
    done: u64,
    /// The start of a row of texels that is not whole yet.
    row: Vec<u8>,
}

impl Filling<'_> {
    /// Appends bytes; pieces have multiples of 4.
    pub fn push(&mut self, piece: &[u8]) {
        match self.to {
            Resident::Buffer(buffer) => {
                self.queue.write_buffer(buffer, self.done, piece);
                self.done += piece.len() as u64;
            }
            Resident::Image(texture, _) => {
                let mut rest = piece;
                if !self.row.is_empty() {
                    let (first, others) = rest.split_at(rest.len().min(ROW - self.row.len()));
                    self.row.extend_from_slice(first);
                    rest = others;
                    if self.row.len() == ROW {
                        let row = std::mem::take(&mut self.row);
                        self.rows(texture, &row);
                    }
                }
                let (whole, start) = rest.split_at(rest.len() / ROW * ROW);
                self.rows(texture, whole);
                self.row.extend_from_slice(start);
            }
        }
    }

    /// Ends it, with zeros up to the end of a row of texels.
    pub fn finish(&mut self) {
        if let Resident::Image(texture, _) = self.to
            && !self.row.is_empty()
        {
            let mut row = std::mem::take(&mut self.row);
            row.resize(ROW, 0);
            self.rows(texture, &row);
        }
    }

    fn rows(&mut self, texture: &wgpu::Texture, bytes: &[u8]) {
        let height = (bytes.len() / ROW) as u32;
        if height == 0 {
            return;
        }
        let destination = wgpu::TexelCopyTextureInfo {
            origin: wgpu::Origin3d {
                x: 0,
                y: (self.done / ROW as u64) as u32,
                z: 0,
            },
            ..texture.as_image_copy()
        };
        let layout = wgpu::TexelCopyBufferLayout {
            offset: 0,
            bytes_per_row: Some(ROW as u32),
            rows_per_image: None,
        };
        let size = wgpu::Extent3d {
            width: TEXELS_IN_ROW as u32,
            height,
            depth_or_array_layers: 1,
        };
        self.queue.write_texture(destination, bytes, layout, size);
        self.done += bytes.len() as u64;
    }
}
