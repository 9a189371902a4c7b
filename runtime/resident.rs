//! Weights and buffers on the device, and their way there.

use kiln_ir::Packing;
use kiln_ir::packing::BAND_ROWS;
use kiln_ir::plan::{Access, ImageSize, TEXEL_BYTES, WeightPart};
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
    Image(Image),
}

/// A texture, of which a part is used.
pub(crate) struct Image {
    texture: wgpu::Texture,
    view: wgpu::TextureView,
    /// What kernels count by: the texture may be a texel wider or higher.
    size: ImageSize,
}

impl Resident {
    /// A place for `bytes` that lie one after the other, zeroed.
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
            Form::Image => Self::image(device, name, ImageSize::of_bytes(bytes), advice)?,
        })
    }

    /// An image, zeroed.
    ///
    /// # Errors
    /// When it exceeds a limit, or memory runs out.
    pub fn image(
        device: &Device,
        name: &str,
        size: ImageSize,
        advice: &'static str,
    ) -> Result<Self> {
        let usage = TextureUsages::STORAGE_BINDING | TextureUsages::COPY_DST;
        let texture = device.image(name, size, usage, advice)?;
        let view = texture.create_view(&wgpu::TextureViewDescriptor::default());
        Ok(Resident::Image(Image {
            texture,
            view,
            size,
        }))
    }

    /// The buffer, unless it is an image.
    pub fn buffer(&self) -> Option<&wgpu::Buffer> {
        match self {
            Resident::Buffer(buffer) => Some(buffer),
            Resident::Image(_) => None,
        }
    }

    pub fn binding(&self) -> wgpu::BindingResource<'_> {
        match self {
            Resident::Buffer(buffer) => buffer.as_entire_binding(),
            Resident::Image(image) => wgpu::BindingResource::TextureView(&image.view),
        }
    }

    /// Begins to fill it.
    pub fn filling<'a>(&'a self, queue: &'a wgpu::Queue, bands: Option<Bands>) -> Filling<'a> {
        Filling {
            to: self,
            queue,
            bands,
            done: 0,
            row: Vec::new(),
        }
    }
}

impl Image {
    /// Bytes of a row of texels.
    fn row_bytes(&self) -> usize {
        (self.size.across * TEXEL_BYTES) as usize
    }
}

/// How the rows of a matrix become the bands of an image.
pub(crate) struct Bands {
    packing: Packing,
    k: usize,
    /// Those of all rows.
    scales: Vec<u8>,
    /// Bytes of those that are taken.
    scales_done: usize,
    /// Bytes of the rows of the bands to come.
    left: usize,
    /// The start of a band that is not whole yet.
    start: Vec<u8>,
    /// Room for whole bands.
    arranged: Vec<u8>,
}

impl Bands {
    /// Those of `matrix`, with all its scales.
    pub fn new(matrix: &WeightPart, scales: Vec<u8>) -> Self {
        let (packing, k) = (matrix.packing, matrix.k());
        let rows = (matrix.rows as usize).next_multiple_of(BAND_ROWS);
        Bands {
            packing,
            k,
            scales,
            scales_done: 0,
            left: packing.data_bytes(rows, k),
            start: Vec::new(),
            arranged: Vec::new(),
        }
    }

    /// Hands `sink` the bands that are whole with these bytes of the rows, or, at their
    /// `end`, with zeros behind them.
    fn take(&mut self, piece: &[u8], end: bool, sink: &mut dyn FnMut(&[u8])) {
        let band = self.packing.data_bytes(BAND_ROWS, self.k);
        // What lies behind the last band is padding.
        let piece = &piece[..piece.len().min(self.left - self.start.len())];
        let missing = (band - self.start.len()) % band;
        let (first, rest) = piece.split_at(piece.len().min(missing));
        let mut begun = std::mem::take(&mut self.start);
        begun.extend_from_slice(first);
        if end {
            begun.resize(self.left, 0);
        }
        if !begun.len().is_multiple_of(band) {
            self.start = begun;
            return;
        }
        let (whole, tail) = rest.split_at(rest.len() / band * band);
        for rows in [&begun, whole] {
            sink(self.arrange(rows));
        }
        begun.clear();
        begun.extend_from_slice(tail);
        self.start = begun;
    }

    /// The next bands.
    fn arrange(&mut self, rows: &[u8]) -> &[u8] {
        let scales = self.scales.get(self.scales_done..).unwrap_or_default();
        self.packing.bands(rows, scales, self.k, &mut self.arranged);
        let count = rows.len() / self.packing.data_bytes(BAND_ROWS, self.k) * BAND_ROWS;
        self.scales_done += self.packing.scale_bytes(count, self.k);
        self.left -= rows.len();
        &self.arranged
    }
}

/// What is being filled.
pub(crate) struct Filling<'a> {
    to: &'a Resident,
    queue: &'a wgpu::Queue,
    bands: Option<Bands>,
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
            Resident::Image(image) => self.image(image, piece, false),
        }
    }

    /// Ends it, with zeros up to the end of a row of texels.
    pub fn finish(&mut self) {
        if let Resident::Image(image) = self.to {
            self.image(image, &[], true);
            if !self.row.is_empty() {
                let mut row = std::mem::take(&mut self.row);
                row.resize(image.row_bytes(), 0);
                self.rows(image, &row);
            }
        }
    }

    fn image(&mut self, image: &Image, piece: &[u8], end: bool) {
        match self.bands.take() {
            Some(mut bands) => {
                bands.take(piece, end, &mut |bands| self.texels(image, bands));
                self.bands = Some(bands);
            }
            None => self.texels(image, piece),
        }
    }

    fn texels(&mut self, image: &Image, piece: &[u8]) {
        let row_bytes = image.row_bytes();
        let mut rest = piece;
        if !self.row.is_empty() {
            let (first, others) = rest.split_at(rest.len().min(row_bytes - self.row.len()));
            self.row.extend_from_slice(first);
            rest = others;
            if self.row.len() == row_bytes {
                let row = std::mem::take(&mut self.row);
                self.rows(image, &row);
            }
        }
        let (whole, start) = rest.split_at(rest.len() / row_bytes * row_bytes);
        self.rows(image, whole);
        self.row.extend_from_slice(start);
    }

    fn rows(&mut self, image: &Image, bytes: &[u8]) {
        let row_bytes = image.row_bytes();
        let height = (bytes.len() / row_bytes) as u32;
        if height == 0 {
            return;
        }
        let destination = wgpu::TexelCopyTextureInfo {
            origin: wgpu::Origin3d {
                x: 0,
                y: (self.done / row_bytes as u64) as u32,
                z: 0,
            },
            ..image.texture.as_image_copy()
        };
        let layout = wgpu::TexelCopyBufferLayout {
            offset: 0,
            bytes_per_row: Some(row_bytes as u32),
            rows_per_image: None,
        };
        let size = wgpu::Extent3d {
            width: image.size.across as u32,
            height,
            depth_or_array_layers: 1,
        };
        self.queue.write_texture(destination, bytes, layout, size);
        self.done += bytes.len() as u64;
    }
}
