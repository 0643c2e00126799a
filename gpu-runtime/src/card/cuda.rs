//! The CUDA driver's library, bound by name when a worker first wants a card.
//!
//! Entry points are taken by their versioned names, which the driver keeps from release to release: a library built for another
//! release of CUDA works as long as it has them. Answers are plain integers here, never a closed enumeration, as drivers
//! learn new ones.
//!
//! The only file that calls the driver. Every call passes plain numbers, pointers to locals or slices that outlive it, and
//! handles that the driver gave out before; a device address that is wrong makes the driver answer an error.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::Arc;

use super::{Blame, CardError, CardLaunch, Function, GpuContext, Mark};

/// As the system finds it where the owner names no other.
pub const LIBRARY: &str = "libcuda.so.1";
/// Waiting for the card sleeps instead of spinning.
const CONTEXT_SCHED_BLOCKING_SYNC: c_uint = 4;
const EVENT_BLOCKING_SYNC: c_uint = 1;
const LIMIT_PRINTF_FIFO: c_int = 1;
const LIMIT_MALLOC_HEAP: c_int = 2;
/// Device memory that kernels can take beside their buffers: as little as the driver lets us set.
const DEVICE_HEAP_BYTES: usize = 64 << 10;
const JIT_ERROR_LOG: c_int = 5;
const JIT_ERROR_LOG_BYTES: c_int = 6;
const JIT_LOG_BYTES: usize = 8 << 10;
/// Keys of the list that passes a launch its arguments as one buffer.
/// Most bytes of arguments that a kernel can declare, before CUDA 12.1.
const PARAMETER_BYTES: usize = 4352;
const LAUNCH_END: *mut c_void = null_mut();
const LAUNCH_BUFFER: usize = 1;
const LAUNCH_BUFFER_BYTES: usize = 2;

type Handle = *mut c_void;

/// Declares the entry points, and how they are found.
macro_rules! interface {
    ($($name:ident = $symbol:literal ($($kind:ty),*);)*) => {
        #[derive(Debug, Clone, Copy)]
        struct Interface {
            $($name: unsafe extern "C" fn($($kind),*) -> c_int,)*
        }

        impl Interface {
            fn bind(library: Handle) -> Result<Self, CardError> {
                Ok(Self {
                    $($name: typed(symbol(library, $symbol)?),)*
                })
            }
        }
    };
}

interface! {
    init = c"cuInit" (c_uint);
    driver_version = c"cuDriverGetVersion" (*mut c_int);
    device_count = c"cuDeviceGetCount" (*mut c_int);
    device = c"cuDeviceGet" (*mut c_int, c_int);
    context_create = c"cuCtxCreate_v2" (*mut Handle, c_uint, c_int);
    context_destroy = c"cuCtxDestroy_v2" (Handle);
    context_limit = c"cuCtxSetLimit" (c_int, usize);
    memory_info = c"cuMemGetInfo_v2" (*mut usize, *mut usize);
    allocate = c"cuMemAlloc_v2" (*mut u64, usize);
    free = c"cuMemFree_v2" (u64);
    set_bytes = c"cuMemsetD8_v2" (u64, u8, usize);
    to_card = c"cuMemcpyHtoD_v2" (u64, *const c_void, usize);
    from_card = c"cuMemcpyDtoH_v2" (*mut c_void, u64, usize);
    load = c"cuModuleLoadDataEx" (*mut Handle, *const c_void, c_uint, *mut c_int, *mut Handle);
    function = c"cuModuleGetFunction" (*mut Handle, Handle, *const c_char);
    stream_create = c"cuStreamCreate" (*mut Handle, c_uint);
    launch = c"cuLaunchKernel" (Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut Handle, *mut Handle);
    event_create = c"cuEventCreate" (*mut Handle, c_uint);
    event_record = c"cuEventRecord" (Handle, Handle);
    event_wait = c"cuEventSynchronize" (Handle);
    event_between = c"cuEventElapsedTime" (*mut f32, Handle, Handle);
    error_name = c"cuGetErrorName" (c_int, *mut *const c_char);
}

/// Where the library has a function.
fn symbol(library: Handle, name: &CStr) -> Result<Handle, CardError> {
    // SAFETY: the handle is an open library; the name ends with a zero byte.
    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
    if found.is_null() {
        return Err(absent(format!("the CUDA driver has no {name:?}: it is too old")));
    }
    Ok(found)
}

/// The function there, of the type that the driver's interface gives to its name.
fn typed<F: Copy>(found: Handle) -> F {
    assert_eq!(size_of::<F>(), size_of::<Handle>());
    // SAFETY: `F` is a function pointer wherever this is called, as large as the address it is made of; that its type fits the name
    // is read off `cuda.h`, line by line in the list above.
    unsafe { std::mem::transmute_copy(&found) }
}

/// The driver's library, open.
#[derive(Debug, Clone)]
pub struct Cuda {
    interface: Arc<Interface>,
}

fn absent(doing: String) -> CardError {
    CardError { doing, code: -1, name: "no driver".into(), blame: Blame::Card, log: String::new() }
}

impl Cuda {
    /// Opens the driver's library, or the one that the machine's owner names, without starting it.
    ///
    /// # Errors
    /// There is none, or it lacks an entry point; the text says which.
    pub fn open(library: Option<&Path>) -> Result<Self, CardError> {
        let name = library.unwrap_or(Path::new(LIBRARY));
        let path = CString::new(name.as_os_str().as_bytes())
            .map_err(|_| absent(format!("open {name:?}: a zero byte in a path")))?;
        // SAFETY: a path that ends with a zero byte. The library's own start-up code runs: the owner of the machine named it.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            // SAFETY: after a failed dlopen of this thread; null or a text that lives until its next call.
            let why = unsafe {
                let text = libc::dlerror();
                if text.is_null() {
                    String::new()
                } else {
                    CStr::from_ptr(text).to_string_lossy().into_owned()
                }
            };
            return Err(absent(format!("open {name:?}: {why}")));
        }
        // Never closed: what it was asked to do may go on in its own threads.
        Ok(Self { interface: Arc::new(Interface::bind(library)?) })
    }

    /// Starts the driver in this process with one card, and makes a context on it. The process must have one thread, and must not
    /// have started the driver before.
    ///
    /// `uuid`: a card (`GPU-...`) or an instance of one (`MIG-...`), as the driver prints them.
    ///
    /// # Errors
    /// The driver does not start here, or has no such card.
    pub fn context(&self, uuid: &str) -> Result<CudaContext, CardError> {
        // The driver shows this process that card alone.
        // SAFETY: one thread, so nobody reads the environment meanwhile.
        unsafe { std::env::set_var("CUDA_VISIBLE_DEVICES", uuid) };
        let calls = *self.interface;
        let mut context = CudaContext {
            calls,
            context: null_mut(),
            stream: null_mut(),
            module: null_mut(),
            functions: Vec::new(),
            marks: Vec::new(),
            free_marks: Vec::new(),
        };
        let (mut count, mut device) = (0, 0);
        // SAFETY: as said at the head of this file.
        unsafe {
            check(&calls, (calls.init)(0), || "start the CUDA driver".into())?;
            check(&calls, (calls.device_count)(&mut count), || "count cards".into())?;
        }
        if count == 0 {
            return Err(absent(format!("the CUDA driver shows no card {uuid}")));
        }
        // SAFETY: as said at the head of this file.
        unsafe {
            check(&calls, (calls.device)(&mut device, 0), || format!("find the card {uuid}"))?;
            let made = (calls.context_create)(&mut context.context, CONTEXT_SCHED_BLOCKING_SYNC, device);
            check(&calls, made, || format!("make a context on the card {uuid}"))?;
            // A driver that does not take these keeps its own small defaults.
            _ = (calls.context_limit)(LIMIT_MALLOC_HEAP, DEVICE_HEAP_BYTES);
            _ = (calls.context_limit)(LIMIT_PRINTF_FIFO, DEVICE_HEAP_BYTES);
            check(&calls, (calls.stream_create)(&mut context.stream, 0), || "make a stream".into())?;
        }
        Ok(context)
    }

    /// What the driver speaks: 13000 is CUDA 13.0.
    ///
    /// # Errors
    /// As the driver answers.
    pub fn version(&self) -> Result<i32, CardError> {
        let mut version = 0;
        // SAFETY: a pointer to a local.
        let code = unsafe { (self.interface.driver_version)(&mut version) };
        check(&self.interface, code, || "ask the CUDA driver's version".into()).map(|()| version)
    }
}

fn check(calls: &Interface, code: c_int, doing: impl FnOnce() -> String) -> Result<(), CardError> {
    if code == 0 {
        return Ok(());
    }
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: the driver sets the pointer to a text of its own that stays, or leaves it null.
    let name = unsafe {
        (calls.error_name)(code, &mut text);
        if text.is_null() { "unknown".into() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
    };
    Err(CardError { doing: doing(), code, name, blame: blame_of(code), log: String::new() })
}

/// Codes of `cuda.h`, by who can mend them.
fn blame_of(code: c_int) -> Blame {
    match code {
        2 => Blame::Memory,
        // Images and their kernels.
        200 | 209 | 218 | 222 | 223 | 300 | 500 => Blame::Module,
        // A launch's shape, and what a kernel did.
        1 | 700..=702 | 710 | 714..=720 => Blame::Kernel,
        _ => Blame::Card,
    }
}

/// A context on one card, of this thread.
#[derive(Debug)]
pub struct CudaContext {
    calls: Interface,
    context: Handle,
    stream: Handle,
    module: Handle,
    functions: Vec<Handle>,
    marks: Vec<Handle>,
    free_marks: Vec<Mark>,
}

impl CudaContext {
    fn check(&self, code: c_int, doing: impl FnOnce() -> String) -> Result<(), CardError> {
        check(&self.calls, code, doing)
    }
}

impl Drop for CudaContext {
    fn drop(&mut self) {
        if !self.context.is_null() {
            // SAFETY: made by this driver, destroyed once; nothing that belongs to it is used afterwards.
            unsafe { (self.calls.context_destroy)(self.context) };
        }
    }
}

impl GpuContext for CudaContext {
    fn memory(&self) -> Result<(u64, u64), CardError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: pointers to locals.
        let code = unsafe { (self.calls.memory_info)(&mut free, &mut total) };
        self.check(code, || "ask for free memory".into())?;
        Ok((free as u64, total as u64))
    }

    fn allocate(&mut self, bytes: u64) -> Result<u64, CardError> {
        let mut address = 0;
        // SAFETY: a pointer to a local.
        let code = unsafe { (self.calls.allocate)(&mut address, bytes as usize) };
        self.check(code, || format!("allocate {bytes} bytes on the card"))?;
        Ok(address)
    }

    fn free(&mut self, address: u64) -> Result<(), CardError> {
        // SAFETY: a number; the driver knows which addresses it gave out.
        let code = unsafe { (self.calls.free)(address) };
        self.check(code, || "free memory on the card".into())
    }

    fn clear(&mut self, address: u64, bytes: u64) -> Result<(), CardError> {
        // SAFETY: numbers; the driver checks the range.
        let code = unsafe { (self.calls.set_bytes)(address, 0, bytes as usize) };
        self.check(code, || "clear memory on the card".into())
    }

    fn upload(&mut self, address: u64, bytes: &[u8]) -> Result<(), CardError> {
        // SAFETY: the slice outlives the call, which is synchronous; the driver checks the range on the card.
        let code = unsafe { (self.calls.to_card)(address, bytes.as_ptr().cast(), bytes.len()) };
        self.check(code, || format!("copy {} bytes to the card", bytes.len()))
    }

    fn download(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), CardError> {
        // SAFETY: as for `upload`.
        let code = unsafe { (self.calls.from_card)(bytes.as_mut_ptr().cast(), address, bytes.len()) };
        self.check(code, || format!("copy {} bytes from the card", bytes.len()))
    }

    fn load(&mut self, ptx: &str) -> Result<(), CardError> {
        let text = CString::new(ptx).map_err(|_| CardError {
            doing: "read the module".into(),
            code: 200,
            name: "a zero byte in its text".into(),
            blame: Blame::Module,
            log: String::new(),
        })?;
        let mut log = vec![0_u8; JIT_LOG_BYTES];
        let mut keys = [JIT_ERROR_LOG, JIT_ERROR_LOG_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), JIT_LOG_BYTES as Handle];
        // SAFETY: text, keys, values and the log outlive the call; the log is as long as its option says.
        let code = unsafe {
            (self.calls.load)(
                &mut self.module,
                text.as_ptr().cast(),
                2,
                keys.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        self.check(code, || "load the module".into()).map_err(|error| {
            let said = log.split(|byte| *byte == 0).next().unwrap_or_default();
            let said = String::from_utf8_lossy(said).trim().replace('\n', "; ");
            let log = if said.is_empty() { said } else { format!(": {said}") };
            CardError { log, ..error }
        })
    }

    fn function(&mut self, name: &str) -> Result<Function, CardError> {
        let text = CString::new(name).unwrap_or_default();
        let mut found = null_mut();
        // SAFETY: the module was loaded by this driver, or is null, which it refuses; the name ends with a zero byte.
        let code = unsafe { (self.calls.function)(&mut found, self.module, text.as_ptr()) };
        self.check(code, || format!("find the kernel {name:?}"))?;
        self.functions.push(found);
        Ok(Function(self.functions.len() - 1))
    }

    fn launch(&mut self, launch: &CardLaunch) -> Result<(), CardError> {
        let CardLaunch { function, grid, block, shared_bytes, parameters } = launch;
        let function = self.functions.get(function.0).copied().unwrap_or(null_mut());
        let mut parameters = parameters.clone();
        let mut bytes = parameters.len();
        // A module whose declaration was misread must not read what lies behind.
        parameters.resize(bytes.max(PARAMETER_BYTES), 0);
        let mut extra: [Handle; 5] = [
            LAUNCH_BUFFER as Handle,
            parameters.as_mut_ptr().cast(),
            LAUNCH_BUFFER_BYTES as Handle,
            (&raw mut bytes).cast(),
            LAUNCH_END,
        ];
        // SAFETY: the driver copies the arguments before it returns; they, their length and the list outlive the call. A kernel
        // reads no more of them than it declares, and the caller laid them out by that declaration.
        let code = unsafe {
            (self.calls.launch)(
                function,
                grid[0],
                grid[1],
                grid[2],
                block[0],
                block[1],
                block[2],
                *shared_bytes,
                self.stream,
                null_mut(),
                extra.as_mut_ptr(),
            )
        };
        self.check(code, || "launch a kernel".into())
    }

    fn mark(&mut self) -> Result<Mark, CardError> {
        let mark = match self.free_marks.pop() {
            Some(mark) => mark,
            None => {
                let mut event = null_mut();
                // SAFETY: a pointer to a local.
                let code = unsafe { (self.calls.event_create)(&mut event, EVENT_BLOCKING_SYNC) };
                self.check(code, || "make an event".into())?;
                self.marks.push(event);
                Mark(self.marks.len() - 1)
            }
        };
        // SAFETY: event and stream were made by this driver.
        let code = unsafe { (self.calls.event_record)(self.marks[mark.0], self.stream) };
        self.check(code, || "record an event".into()).map(|()| mark)
    }

    fn wait(&mut self, mark: Mark) -> Result<(), CardError> {
        // SAFETY: the event was made by this driver.
        let code = unsafe { (self.calls.event_wait)(self.marks[mark.0]) };
        self.check(code, || "run a kernel".into())
    }

    fn between_ns(&mut self, from: Mark, to: Mark) -> Result<u64, CardError> {
        let mut ms = 0.0;
        // SAFETY: a pointer to a local; both events were made by this driver.
        let code = unsafe { (self.calls.event_between)(&mut ms, self.marks[from.0], self.marks[to.0]) };
        self.free_marks.extend([from, to]);
        self.check(code, || "measure a kernel".into())?;
        Ok((f64::from(ms).max(0.0) * 1e6) as u64)
    }
}
