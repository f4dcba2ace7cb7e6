//! Path 2, step B: compiling, in a child process of the same binary.
//!
//! A compiler works on whatever bytes somebody put into a folder, for as long and with as much
//! memory as those make it, and can't be cancelled. So it runs in a process of its own, with
//! limits that the system enforces, at low priority, and is killed at its deadline. The bytes go
//! in by its standard input, so that what is compiled is what was checked; the code comes back
//! by its standard output, and is kept by the cache.

use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal};
use wasmtime::Engine;

/// The hidden command of the child.
pub const COMMAND: &str = "compile-module";

/// How modules are compiled, and which are not even tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileSettings {
    /// Time that one module may take.
    pub timeout: Duration,
    /// Bytes of memory that the compiler may take.
    pub memory_bytes: u64,
    /// Modules that are compiled at once.
    pub at_once: usize,
    /// Largest module file, in bytes.
    pub module_bytes: u64,
    /// Most functions of one module.
    pub functions: u64,
}

impl Default for CompileSettings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(60),
            memory_bytes: 2 << 30,
            at_once: 1,
            module_bytes: 64 << 20,
            functions: 50_000,
        }
    }
}

/// Why there is no compiled code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // each field is what its variant's message says
pub enum CompileError {
    #[error("{0}")]
    Refused(String),
    #[error("it does not fit into a sandbox: {0}")]
    Unfit(String),
    #[error(
        "compiling it took longer than {}; simplify it, or raise `timeout` in [compile]",
        humantime::format_duration(*limit)
    )]
    Timeout { limit: Duration },
    #[error(
        "compiling it takes more than {limit} bytes of memory; simplify it, or raise `memory` in [compile]"
    )]
    Memory { limit: u64 },
    #[error("the compiler's process ended by {how}: {said}")]
    Crashed { how: String, said: String },
    #[error("the compiler's process can't be started")]
    Start(#[source] std::io::Error),
    #[error("nobody waits for it any more")]
    GivenUp,
}

/// A wish for compiled code, known to who compiles and to who waits.
#[derive(Debug, Clone, Default)]
pub struct Wish(Arc<(Mutex<WishState>, Condvar)>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum WishState {
    #[default]
    Waits,
    GivenUp,
    Ended,
}

/// Whoever waits for compiled code: dropped, it gives the wish up, and the compiler's process is
/// killed.
#[derive(Debug)]
pub struct Waiting(Wish);

impl Wish {
    /// The side of who waits.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        Waiting(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, WishState> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the wish in this way, unless it has ended.
    fn end(&self, how: WishState) {
        let mut state = self.state();
        if *state == WishState::Waits {
            *state = how;
        }
        self.0.1.notify_all();
    }

    /// Waits until the wish ends, or for this long; tells what it came to.
    fn ended_within(&self, time: Duration) -> WishState {
        let waits = |state: &mut WishState| *state == WishState::Waits;
        let waited = self.0.1.wait_timeout_while(self.state(), time, waits);
        waited.map_or(WishState::Waits, |(state, _)| *state)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.end(WishState::GivenUp);
    }
}

/// Compiles modules, a few at once.
pub struct Compiler {
    program: Option<PathBuf>,
    settings: CompileSettings,
    running: Mutex<usize>,
    ended: Condvar,
}

impl Compiler {
    /// A compiler in this process, without limits: for programs that are not `sqjobs-host`.
    #[must_use]
    pub fn in_process(settings: CompileSettings) -> Self {
        Self { program: None, settings, running: Mutex::new(0), ended: Condvar::new() }
    }

    /// A compiler in a child process of this very binary, which must be `sqjobs-host`.
    #[must_use]
    pub fn child(settings: CompileSettings) -> Self {
        // The link names the running program's file even after that was replaced.
        Self { program: Some("/proc/self/exe".into()), ..Self::in_process(settings) }
    }

    /// What a module must keep to be compiled at all.
    #[must_use]
    pub fn settings(&self) -> &CompileSettings {
        &self.settings
    }

    /// Compiles a component for `engine`. Blocks, also while others are compiled.
    ///
    /// # Errors
    /// It is not well formed, it went beyond a limit, or the wish was given up.
    pub fn compile(
        &self,
        engine: &Engine,
        component: &[u8],
        wish: &Wish,
    ) -> Result<Vec<u8>, CompileError> {
        let Some(program) = &self.program else {
            return engine
                .precompile_component(component)
                .map_err(|error| CompileError::Refused(error.root_cause().to_string()));
        };
        let _turn = self.turn();
        if *wish.state() == WishState::GivenUp {
            return Err(CompileError::GivenUp);
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cpu_secs = self.settings.timeout.as_secs().saturating_mul(cores as u64) + 1;
        let numbers = [self.settings.memory_bytes, cpu_secs, u64::from(std::process::id())];
        let child = Command::new(program)
            .arg(COMMAND)
            .args(numbers.map(|number| number.to_string()))
            // Nothing of what the host knows is of use to a compiler.
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(CompileError::Start)?;
        self.carry(child, component, wish)
    }

    /// Hands the bytes over, takes the code back, and kills the child at the deadline, or when
    /// nobody waits for it any more.
    fn carry(
        &self,
        mut child: Child,
        component: &[u8],
        wish: &Wish,
    ) -> Result<Vec<u8>, CompileError> {
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(CompileError::Start(std::io::ErrorKind::BrokenPipe.into()));
        };
        let child = Mutex::new(child);
        let mut code = Vec::new();
        let (read, said, ended) = std::thread::scope(|scope| {
            // Fails only when the child has ended, whose own error then says why.
            scope.spawn(move || drop(stdin.write_all(component)));
            let said = scope.spawn(move || {
                let mut said = Vec::new();
                drop(stderr.take(16 << 10).read_to_end(&mut said));
                String::from_utf8_lossy(&said).into_owned()
            });
            let watchdog = scope.spawn(|| {
                let ended = wish.ended_within(self.settings.timeout);
                if ended != WishState::Ended {
                    // Fails only for a child that has just ended.
                    drop(child.lock().unwrap_or_else(PoisonError::into_inner).kill());
                }
                ended
            });
            // As much code as the child could have held.
            let read = stdout.take(self.settings.memory_bytes).read_to_end(&mut code);
            wish.end(WishState::Ended);
            (read, said.join().unwrap_or_default(), watchdog.join().unwrap_or_default())
        });
        let mut child = child.into_inner().unwrap_or_else(PoisonError::into_inner);
        let status = child.wait().map_err(CompileError::Start)?;
        match ended {
            WishState::Waits => {
                return Err(CompileError::Timeout { limit: self.settings.timeout });
            }
            WishState::GivenUp => return Err(CompileError::GivenUp),
            WishState::Ended => {}
        }
        read.map_err(CompileError::Start)?;
        if status.success() { Ok(code) } else { Err(self.fault(status, said.trim())) }
    }

    /// What a child that failed came to.
    fn fault(&self, status: ExitStatus, said: &str) -> CompileError {
        let is_cpu = status.signal() == Some(Signal::XCPU.as_raw());
        if is_cpu {
            return CompileError::Timeout { limit: self.settings.timeout };
        }
        if said.contains("memory allocation of") || said.contains("Cannot allocate memory") {
            return CompileError::Memory { limit: self.settings.memory_bytes };
        }
        match status.code() {
            Some(1) => CompileError::Refused(said.to_owned()),
            _ => CompileError::Crashed { how: status.to_string(), said: said.to_owned() },
        }
    }

    /// Waits until fewer than `at_once` modules are compiled.
    fn turn(&self) -> Turn<'_> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.ended.wait_while(running, |running| *running >= self.settings.at_once);
        *waited.unwrap_or_else(PoisonError::into_inner) += 1;
        Turn(self)
    }
}

/// The right to compile one module; given back when dropped.
struct Turn<'a>(&'a Compiler);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.running.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.ended.notify_one();
    }
}

/// What the child of the process `host` does: confines itself, reads a component from standard input, and writes its
/// compiled code to standard output.
///
/// # Errors
/// The component is not well formed, or this process can't be confined; in one line.
pub fn child(memory_bytes: u64, cpu_secs: u64, host: u32) -> Result<(), String> {
    confine(memory_bytes, cpu_secs, host)?;
    let mut component = Vec::new();
    std::io::stdin().read_to_end(&mut component).map_err(|error| error.to_string())?;
    let engine = crate::sandbox::compiling_engine().map_err(|error| format!("{error:#}"))?;
    let code =
        engine.precompile_component(&component).map_err(|error| error.root_cause().to_string())?;
    std::io::stdout().write_all(&code).map_err(|error| error.to_string())
}

/// Limits of this process. Address space is not limited: the engine reserves far more of it than
/// it ever uses.
fn confine(memory_bytes: u64, cpu_secs: u64, host: u32) -> Result<(), String> {
    let limits = [
        (Resource::Data, memory_bytes, memory_bytes),
        // The first ends it by a signal of its own, the second by one that can't be caught.
        (Resource::Cpu, cpu_secs, cpu_secs + 1),
        (Resource::Core, 0, 0),
        (Resource::Fsize, 0, 0),
    ];
    for (resource, current, maximum) in limits {
        // A limit that was set for this user stands where it is the lower one.
        let most = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let limit = Rlimit { current: Some(current.min(most)), maximum: Some(maximum.min(most)) };
        rustix::process::setrlimit(resource, limit)
            .map_err(|error| format!("cannot limit {resource:?}: {error}"))?;
    }
    // Its result is of no use to anyone when the host is gone.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("cannot be tied to the host: {error}"))?;
    // The signal does not come for a host that was gone before.
    let parent = rustix::process::getppid().map(rustix::process::Pid::as_raw_nonzero);
    if parent.map(|parent| parent.get().unsigned_abs()) != Some(host) {
        return Err("the host is gone".into());
    }
    // Jobs come first: beside one that computes the compiler gets a quarter of a processor. At the
    // lowest priorities a deploy would wait for seconds on a busy machine. Not set, it is faster.
    let _ = rustix::process::nice(5);
    Ok(())
}
