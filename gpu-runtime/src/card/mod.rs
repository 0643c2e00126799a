//! A card as this machine's driver shows it: what it is, and the few things that a worker does with it.
//!
//! ```text
//! libnvidia-ml.so.1 ── nvml ──> what the node offers, and whether a card is well
//! libcuda.so.1 ─────── cuda ──> a context of one worker ── arena, module, launches, events
//! ```
//!
//! | room     | holds                                                                  |
//! |----------|------------------------------------------------------------------------|
//! | (here)   | the port [`GpuContext`], its errors                                    |
//! | [`cuda`] | that port over the driver's own library, bound when it is first wanted |
//! | [`nvml`] | inventory and health, likewise                                         |
//! | [`host`] | this machine's cards: offered, closed, divided into slices              |
//! | [`files`] | which device nodes and libraries a confined process needs              |
//! | [`guard`] | who uses cards beside tasks, and which task takes more than its slice   |
//! | [`trial`] | checks of a real card, as it is used here                              |
//! | [`shadow`] | the library that keeps containers within their shares                 |
//!
//! What always holds: neither library is needed to build or to start; a machine without them has no cards, and says why when
//! asked; a library is named by the owner's configuration or found as the system finds it, never by a task.

pub mod cuda;
pub mod files;
pub mod guard;
pub mod host;
pub mod nvml;
pub mod shadow;
pub mod trial;

/// What must be done about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The module does not suit this card or driver, or is no module: nowhere will it run like this.
    Module,
    /// A launch asks for more than the card has, or a kernel did what the card ended it for.
    Kernel,
    /// The slice's memory is full.
    Memory,
    /// Card or driver: try elsewhere.
    Card,
}

/// A call that the driver refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{doing}: the CUDA driver answered {code} ({name}){log}")]
pub struct CardError {
    pub doing: String,
    /// As in `cuda.h`; -1: there is no driver.
    pub code: i32,
    pub name: String,
    pub blame: Blame,
    /// What the driver's compiler said, after a colon; else empty.
    pub log: String,
}

/// A kernel of the loaded module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function(pub usize);

/// A moment on the card's timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(pub usize);

/// Shape of a launch and its arguments, laid out as the kernel declares them.
#[derive(Debug, Clone)]
pub struct CardLaunch {
    pub function: Function,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared_bytes: u32,
    pub parameters: Vec<u8>,
}

/// One worker's hold on one card: one module, one stretch of memory, one stream.
///
/// Everything that is launched runs in the order in which it was launched.
pub trait GpuContext {
    /// Bytes free and in all, as the driver tells.
    ///
    /// # Errors
    /// As the driver answers.
    fn memory(&self) -> Result<(u64, u64), CardError>;

    /// Takes device memory; answers its address. Its content is undefined.
    ///
    /// # Errors
    /// [`Blame::Memory`] where there is not enough.
    fn allocate(&mut self, bytes: u64) -> Result<u64, CardError>;

    /// Gives memory back.
    ///
    /// # Errors
    /// As the driver answers.
    fn free(&mut self, address: u64) -> Result<(), CardError>;

    /// Sets bytes to zero.
    ///
    /// # Errors
    /// As the driver answers.
    fn clear(&mut self, address: u64, bytes: u64) -> Result<(), CardError>;

    /// # Errors
    /// As the driver answers.
    fn upload(&mut self, address: u64, bytes: &[u8]) -> Result<(), CardError>;

    /// # Errors
    /// As the driver answers.
    fn download(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), CardError>;

    /// Compiles PTX for the card.
    ///
    /// # Errors
    /// [`Blame::Module`] with the compiler's words.
    fn load(&mut self, ptx: &str) -> Result<(), CardError>;

    /// A kernel of the loaded module.
    ///
    /// # Errors
    /// There is none of that name.
    fn function(&mut self, name: &str) -> Result<Function, CardError>;

    /// Puts a launch behind those before it; does not wait for it.
    ///
    /// # Errors
    /// The card does not take its shape, or an earlier launch has faulted.
    fn launch(&mut self, launch: &CardLaunch) -> Result<(), CardError>;

    /// Marks the moment at which all that was launched so far has ended.
    ///
    /// # Errors
    /// As the driver answers.
    fn mark(&mut self) -> Result<Mark, CardError>;

    /// Waits for a mark.
    ///
    /// # Errors
    /// [`Blame::Kernel`] where a launch before it faulted.
    fn wait(&mut self, mark: Mark) -> Result<(), CardError>;

    /// Card time between two marks that have passed; both may be given out again after this.
    ///
    /// # Errors
    /// As the driver answers.
    fn between_ns(&mut self, from: Mark, to: Mark) -> Result<u64, CardError>;
}
