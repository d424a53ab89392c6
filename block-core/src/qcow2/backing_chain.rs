//! The files that an image needs: the data file that it may have, its backing file, the backing file of that, and so on.
//! The rules by which both find them who read chains: the disk ([`super::Qcow2Disk`]) and whoever works on images as
//! files ([`crate::image`]).
//!
//! * A name in an image is that of a file of this host, relative to the image.
//! * A backing file is raw or qcow2, as its overlay's header says. Where that does not say, its name does, and then its
//!   own first bytes have to agree: nobody who could write into a raw disk shall be able to make an image of it that names
//!   other files.
//! * No file is in a chain twice, and no chain has more than [`MAX_LAYERS`] images.
//! * Only the topmost image, and its data file, may be written to.
//!
//! How files are opened and locked is their reader's matter: [`ChainFile`].

use super::layout::{Header, LayoutError};
use crate::format::{self, Format, QCOW2_MAGIC};
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// Most images of a chain: more than anybody has, and few enough to hold open.
pub(crate) const MAX_LAYERS: usize = 256;

/// What tells a file from every other one of this host, whatever its names: device and inode.
pub(crate) type Identity = (u64, u64);

/// What a file is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// An image's backing file: it is only read.
    Backing,
    /// An image's data file: it is written to if the image is.
    Data,
}

/// A file of a chain, open.
pub(crate) trait ChainFile: Sized {
    /// Why a chain cannot be used.
    type Error: From<ChainError>;

    /// Where it is.
    fn path(&self) -> &Path;

    /// What tells it from other files.
    fn identity(&self) -> io::Result<Identity>;

    /// The same of another file, before that is opened.
    fn identity_of(&self, path: &Path) -> io::Result<Identity>;

    /// Its first `length` bytes, or as many as it has.
    fn start(&self, length: usize) -> io::Result<Vec<u8>>;

    /// Opens another one the way that this one was opened.
    fn open_beside(&self, path: &Path, need: Need) -> Result<Self, Self::Error>;

    /// Says no to images that this reader cannot use.
    fn accept(&self, header: &Header) -> Result<(), Self::Error>;
}

/// Why a chain cannot be used, in a line that begins with the file's name.
#[derive(Debug)]
pub(crate) enum ChainError {
    /// It is not what it has to be.
    Refused { path: PathBuf, reason: String },
    /// It has to be a qcow2 image, and is none.
    NotQcow2 { path: PathBuf },
    /// The host refused something.
    Host { path: PathBuf, action: &'static str, source: io::Error },
}

impl ChainError {
    fn refused(path: &Path, reason: impl Display) -> Self {
        Self::Refused { path: path.to_owned(), reason: reason.to_string() }
    }

    fn host(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { path: path.to_owned(), action, source }
    }
}

/// A backing file that takes the place of the one that the topmost image names.
pub(crate) struct Backing {
    pub path: PathBuf,
    pub format: Option<Format>,
}

/// An image of a chain.
pub(crate) struct Link<F> {
    /// Its file.
    pub file: F,
    /// The header, if it is qcow2; else it is raw.
    pub header: Option<Header>,
    /// The external data file, if it has one.
    pub data_file: Option<F>,
}

/// Opens the chain of an image, the image itself first.
pub(crate) fn open<F: ChainFile>(
    top: F,
    format: Format,
    mut instead: Option<Backing>,
) -> Result<Vec<Link<F>>, F::Error> {
    let mut files = Files::default();
    let mut links = vec![link(top, format, &mut files)?];
    loop {
        let last = &links[links.len() - 1];
        let Some(backing) = last.backing(instead.take())? else { return Ok(links) };
        if links.len() == MAX_LAYERS {
            let reason = format_args!("is one too many: {MAX_LAYERS} images are a chain at most");
            return Err(ChainError::refused(&backing.path, reason).into());
        }
        if let Some(need) = files.need_of(&last.file, &backing.path)? {
            let reason = match need {
                Need::Backing => "is its own backing file, directly or through others",
                Need::Data => "is a data file of the same chain, and cannot be a backing file too",
            };
            return Err(ChainError::refused(&backing.path, reason).into());
        }
        let file = last.file.open_beside(&backing.path, Need::Backing)?;
        let format = match backing.format {
            Some(format) => format,
            None => probe(&file, last.file.path())?,
        };
        links.push(link(file, format, &mut files)?);
    }
}

/// Opens an image without its backing files.
pub(crate) fn open_one<F: ChainFile>(file: F, format: Format) -> Result<Link<F>, F::Error> {
    link(file, format, &mut Files::default())
}

/// Whether a file begins as a qcow2 image does.
pub(crate) fn looks_like_qcow2<F: ChainFile>(file: &F) -> Result<bool, F::Error> {
    let magic = file.start(QCOW2_MAGIC.len()).map_err(ChainError::host(file.path(), "cannot read"))?;
    Ok(magic == QCOW2_MAGIC)
}

/// Where a name in an image's header leads.
pub(crate) fn resolve(image: &Path, what: &str, name: &str) -> Result<PathBuf, ChainError> {
    // As QEMU tells them apart: a colon before any slash.
    let scheme = name.split_once(':').filter(|(scheme, _)| !scheme.contains('/'));
    let name = match scheme {
        Some(("file", path)) => path,
        Some(_) => {
            let name = name.escape_debug();
            let reason = format_args!("its {what} is `{name}`: only files of this host are supported");
            return Err(ChainError::refused(image, reason));
        }
        None => name,
    };
    if name.is_empty() || name.contains('\0') {
        let reason = format_args!("its {what} has the name {name:?}, which no file can have");
        return Err(ChainError::refused(image, reason));
    }
    Ok(image.parent().unwrap_or(Path::new("")).join(name))
}

/// The files of a chain so far, and what each is needed for.
#[derive(Default)]
struct Files(Vec<(Identity, Need)>);

impl Files {
    /// What the file of this name, that `image` needs, is needed for already. To be asked before it is opened: a reader's
    /// own lock would be in the way, and say something else.
    fn need_of<F: ChainFile>(&self, image: &F, path: &Path) -> Result<Option<Need>, ChainError> {
        let wanted = image.identity_of(path).map_err(ChainError::host(path, "cannot open"))?;
        Ok(self.0.iter().find(|(identity, _)| *identity == wanted).map(|(_, need)| *need))
    }

    fn add<F: ChainFile>(&mut self, file: &F, need: Need) -> Result<(), ChainError> {
        let identity = file.identity().map_err(ChainError::host(file.path(), "cannot look at it"))?;
        self.0.push((identity, need));
        Ok(())
    }
}

fn link<F: ChainFile>(file: F, format: Format, files: &mut Files) -> Result<Link<F>, F::Error> {
    files.add(&file, Need::Backing)?;
    if format == Format::Raw {
        return Ok(Link { file, header: None, data_file: None });
    }
    let header = read_header(&file)?;
    file.accept(&header)?;
    let data_file = open_data_file(&file, &header, files)?;
    Ok(Link { file, header: Some(header), data_file })
}

fn read_header<F: ChainFile>(file: &F) -> Result<Header, ChainError> {
    Header::read_from(|length| file.start(length)).map_err(|error| {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<LayoutError>()) {
            Some(LayoutError::NotQcow2) => ChainError::NotQcow2 { path: file.path().to_owned() },
            Some(wrong) => ChainError::refused(file.path(), wrong),
            None => ChainError::host(file.path(), "cannot read")(error),
        }
    })
}

fn open_data_file<F: ChainFile>(file: &F, header: &Header, files: &mut Files) -> Result<Option<F>, F::Error> {
    if !header.external_data_file() {
        return Ok(None);
    }
    let Some(name) = header.data_file() else {
        let reason = "its data is in another file, whose name it does not say";
        return Err(ChainError::refused(file.path(), reason).into());
    };
    let path = resolve(file.path(), "data file", name)?;
    if files.need_of(file, &path)?.is_some() {
        let reason = format_args!("its data file is {}, which its chain has already", path.display());
        return Err(ChainError::refused(file.path(), reason).into());
    }
    let data = file.open_beside(&path, Need::Data)?;
    files.add(&data, Need::Data)?;
    Ok(Some(data))
}

impl<F: ChainFile> Link<F> {
    /// The backing file, if there is one, and its format, if anybody says it.
    fn backing(&self, instead: Option<Backing>) -> Result<Option<Backing>, ChainError> {
        let Some(header) = &self.header else { return Ok(None) };
        if instead.is_some() {
            return Ok(instead);
        }
        let (Some(name), path) = (&header.backing_file, self.file.path()) else { return Ok(None) };
        let format = match header.backing_format() {
            None => None,
            Some("qcow2") => Some(Format::Qcow2),
            // QEMU's names of what is below a raw image serve as formats too.
            Some("raw" | "file" | "host_device") => Some(Format::Raw),
            Some(other) => {
                let other = other.escape_debug();
                let reason =
                    format_args!("its backing file has the format `{other}`: raw and qcow2 are supported");
                return Err(ChainError::refused(path, reason));
            }
        };
        Ok(Some(Backing { path: resolve(path, "backing file", name)?, format }))
    }
}

/// The format of a backing file when nobody has said it: what its name says and its header does not deny.
fn probe<F: ChainFile>(backing: &F, overlay: &Path) -> Result<Format, F::Error> {
    let format = format::of_name(&backing.path().to_string_lossy());
    let (name, header) = match (format, looks_like_qcow2(backing)?) {
        (Format::Qcow2, false) => (Format::Qcow2, Format::Raw),
        (Format::Raw, true) => (Format::Raw, Format::Qcow2),
        _ => return Ok(format),
    };
    let reason = format_args!(
        "its name says {name}, its header {header}, and {} does not say what it is: say it for good with `ringpair img \
         rebase -u -b FILE -F FORMAT IMAGE`, or for a disk with backing=FILE,backing-format=FORMAT",
        overlay.display()
    );
    Err(ChainError::refused(backing.path(), reason).into())
}
