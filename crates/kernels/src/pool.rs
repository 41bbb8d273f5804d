//! A team of threads for work that comes in thousands of small jobs a second, one after the other.
//!
//! Handing a job over costs a fraction of a microsecond while the workers are awake: they watch one
//! word for a while before they go to sleep. A job is a number of units, claimed one by one by the
//! caller and by whoever is awake; the caller waits for claimed units only, so that a worker that
//! sleeps, or that the system has put aside, holds up nothing it has not begun. On a machine with
//! other work to do, where a worker is put aside in the middle of a unit time and again, the caller
//! does more and more jobs alone before it asks for help once more.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::shared::SharedSlice;
use crate::simd::prefetch;

/// How long an idle worker watches for the next job before it sleeps.
const WATCH: Duration = Duration::from_micros(300);
/// Looks at the word between looks at the clock.
const LOOKS: usize = 32;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Bytes that are asked for between looks at the word.
const AHEAD: usize = 8 * LINE;
/// Looks of the caller, at the end of a job, before it offers its processor to others.
const PATIENCE: usize = 2000;
/// How long the caller waits for the others at the end of a job, where that is also longer than it
/// worked itself, before it takes them to be put aside.
const LATE: Duration = Duration::from_micros(300);
/// How long the caller works alone after others were late: so many times as long as it waited, at
/// first, and at the most, if they are late again as soon as they are asked.
const ALONE: RangeInclusive<u32> = 4..=64;

/// Threads that share the units of a job with the caller.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    company: Company,
}

/// Whether the workers are worth asking.
#[derive(Debug, Default)]
struct Company {
    /// Until when the caller works alone, and when it is forgotten that it did.
    alone: Option<(Instant, Instant)>,
    /// How many times as long as the last wait that was.
    factor: u32,
}

/// Keeps what different threads write on different cache lines (and their prefetched neighbours).
#[repr(align(128))]
struct Apart<T>(T);

struct Shared {
    /// Units of the job in the upper half, units claimed in the lower. A claim is a successful
    /// exchange, so that one made late, on an older job's number, either fails or is a claim on the
    /// present job.
    claims: Apart<AtomicU64>,
    /// Units done.
    done: Apart<AtomicUsize>,
    /// What the next job will read: the address behind it, and how many bytes before that are left to
    /// be asked for.
    ahead: Apart<[AtomicUsize; 2]>,
    /// The job. Written only while no unit can be claimed, read only under a claim.
    job: UnsafeCell<Job>,
    /// Whether idle workers watch before they sleep.
    watch: bool,
    sleeping: AtomicUsize,
    stop: AtomicBool,
    door: Mutex<()>,
    wake: Condvar,
    /// What the first unit that panicked said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A borrowed closure without its lifetime.
#[derive(Clone, Copy)]
struct Job {
    body: *const (),
    call: unsafe fn(*const (), usize),
}

// SAFETY: `job` is the only part that is not `Sync` by itself. It is written by the caller of `run`
// before it publishes the job's units, and read by a thread that holds a claim on one of them; the
// caller does not return, and so does not write again, before all claimed units are done.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointers are only used under a claim.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` threads, the caller's among them. More than the machine has processors
    /// work, but sleep at once when idle.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = Arc::new(Shared {
            claims: Apart(AtomicU64::new(0)),
            done: Apart(AtomicUsize::new(0)),
            ahead: Apart([const { AtomicUsize::new(0) }; 2]),
            job: UnsafeCell::new(Job { body: std::ptr::null(), call: nothing }),
            watch: threads <= processors,
            sleeping: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            door: Mutex::new(()),
            wake: Condvar::new(),
            panic: Mutex::new(None),
        });
        let mut pool = Self { shared, workers: vec![], company: Company::default() };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let name = format!("lapidary-{index}");
            let worker = std::thread::Builder::new().name(name).spawn(move || shared.serve())?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// The number of threads, the caller's among them.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Says what the next job will read. Workers that wait for it bring that into their caches
    /// meanwhile, instead of only waiting.
    pub fn announce<T>(&self, memory: &[T]) {
        let [end, left] = &self.shared.ahead.0;
        left.store(0, Ordering::Relaxed);
        end.store(memory.as_ptr_range().end.addr(), Ordering::Relaxed);
        left.store(size_of_val(memory), Ordering::Relaxed);
    }

    /// Calls `body` once for each unit, on any of the threads, and returns when all have returned.
    ///
    /// # Panics
    /// If a unit does, after all others are done; or if there are 2³² units or more.
    pub fn run<F: Fn(usize) + Sync>(&mut self, units: usize, body: F) {
        if self.workers.is_empty() || units <= 1 {
            (0..units).for_each(body);
            return;
        }
        let begin = Instant::now();
        if self.company.is_avoided(begin) {
            (0..units).for_each(body);
            return;
        }
        assert!(u32::try_from(units).is_ok(), "too many units");
        let shared = &*self.shared;
        let job = Job { body: (&raw const body).cast(), call: call::<F> };
        // SAFETY: `&mut self` makes this the only job, and that all units of the one before are done:
        // no claim is held, and none can be made until `claims` is stored below.
        unsafe { *shared.job.get() = job };
        shared.done.0.store(0, Ordering::Relaxed);
        shared.claims.0.store((units as u64) << 32, Ordering::SeqCst);
        if shared.sleeping.load(Ordering::SeqCst) > 0 {
            drop(shared.door.lock().unwrap_or_else(PoisonError::into_inner));
            shared.wake.notify_all();
        }
        while shared.take_unit() {}
        if !shared.is_done_soon(units) {
            let worked = begin.elapsed();
            while shared.done.0.load(Ordering::Acquire) < units {
                std::thread::yield_now();
            }
            let now = Instant::now();
            let waited = (now - begin).saturating_sub(worked);
            if waited > worked.max(LATE) {
                self.company.was_late(now, waited);
            }
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Calls `body` with each run of `run` elements of a slice and the number of the run, on any of
    /// the threads. The last run may be shorter.
    ///
    /// # Panics
    /// As [`run`](Self::run), or if `run` is 0.
    pub fn run_chunks<T: Send>(
        &mut self,
        slice: &mut [T],
        run: usize,
        body: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let length = slice.len();
        let shared = SharedSlice::new(slice);
        self.run(length.div_ceil(run), |unit| {
            let first = unit * run;
            // SAFETY: runs do not overlap, and each is one unit.
            body(unit, unsafe { shared.slice_mut(first, run.min(length - first)) });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.door.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool of {} threads", self.threads())
    }
}

impl Company {
    /// Whether a job that begins now is done alone.
    fn is_avoided(&mut self, now: Instant) -> bool {
        match self.alone {
            None => false,
            Some((until, _)) if now < until => true,
            Some((_, forgotten)) => {
                if now >= forgotten {
                    self.alone = None;
                }
                false
            }
        }
    }

    fn was_late(&mut self, now: Instant, waited: Duration) {
        let factor = if self.alone.is_some() { 2 * self.factor } else { 0 };
        self.factor = factor.clamp(*ALONE.start(), *ALONE.end());
        let alone = waited * self.factor;
        self.alone = Some((now + alone, now + 3 * alone));
    }
}

impl Shared {
    /// Watches for the end of a job for a while; whether it came.
    fn is_done_soon(&self, units: usize) -> bool {
        for _ in 0..if self.watch { PATIENCE } else { 1 } {
            if self.done.0.load(Ordering::Acquire) == units {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// Claims a unit and does it; whether there was one.
    fn take_unit(&self) -> bool {
        let mut seen = self.claims.0.load(Ordering::SeqCst);
        loop {
            let (units, next) = (seen >> 32, seen & 0xffff_ffff);
            if next >= units {
                return false;
            }
            let (success, failure) = (Ordering::SeqCst, Ordering::SeqCst);
            match self.claims.0.compare_exchange_weak(seen, seen + 1, success, failure) {
                Ok(_) => {
                    self.work(next as usize);
                    return true;
                }
                Err(now) => seen = now,
            }
        }
    }

    fn work(&self, unit: usize) {
        // SAFETY: this thread holds a claim, made after the job was written.
        let job = unsafe { *self.job.get() };
        // SAFETY: `call` goes with `body`, which lives until the unit of this claim is done.
        let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (job.call)(job.body, unit) }));
        if let Err(panic) = outcome {
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(panic);
        }
        self.done.0.fetch_add(1, Ordering::Release);
    }

    /// The life of a worker.
    fn serve(&self) {
        while !self.stop.load(Ordering::SeqCst) {
            if !self.take_unit() && !self.comes_while_watching() {
                self.sleep();
            }
        }
    }

    fn has_work(&self) -> bool {
        let claims = self.claims.0.load(Ordering::SeqCst);
        claims & 0xffff_ffff < claims >> 32
    }

    /// Watches for a job for a while; whether one came.
    fn comes_while_watching(&self) -> bool {
        if !self.watch {
            return false;
        }
        let begin = Instant::now();
        while begin.elapsed() < WATCH {
            for _ in 0..LOOKS {
                if self.has_work() {
                    return true;
                }
                self.look_ahead();
            }
        }
        self.has_work()
    }

    /// Asks for some of what was announced, or pauses where there is nothing left. Announcements may
    /// come in between: then what is asked for is of no use, and does no harm.
    fn look_ahead(&self) {
        let [end, left] = &self.ahead.0;
        let before = left.load(Ordering::Relaxed);
        if before == 0 {
            return std::hint::spin_loop();
        }
        let after = before.saturating_sub(AHEAD);
        if left.compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let end = end.load(Ordering::Relaxed);
            for byte in (after..before).step_by(LINE) {
                let address = end.wrapping_sub(before).wrapping_add(byte - after);
                prefetch::<u8>(std::ptr::without_provenance(address));
            }
        }
    }

    fn sleep(&self) {
        // Counted before the last look: a job published later sees the count and knocks.
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        let mut door = self.door.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.has_work() && !self.stop.load(Ordering::SeqCst) {
            door = self.wake.wait(door).unwrap_or_else(PoisonError::into_inner);
        }
        drop(door);
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
    }
}

/// # Safety
/// `body` is a live `F`.
unsafe fn call<F: Fn(usize) + Sync>(body: *const (), unit: usize) {
    // SAFETY: the caller's promise.
    let body = unsafe { &*body.cast::<F>() };
    body(unit);
}

fn nothing(_body: *const (), _unit: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_announced_need_not_be_there_any_more() {
        let mut pool = Pool::new(3).unwrap();
        for round in 0..200 {
            let gone = vec![1_u64; 1000 * (round % 5)];
            pool.announce(&gone);
            drop(gone);
            let sum = AtomicUsize::new(0);
            pool.run(20, |unit| {
                sum.fetch_add(unit, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 190);
            // Long enough for some to be asked for.
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    #[test]
    fn every_unit_is_done_once_whatever_the_threads_and_pauses() {
        for threads in [1, 2, 3, 8] {
            let mut pool = Pool::new(threads).unwrap();
            for round in 0..300 {
                let counts: Vec<_> = (0..round % 23).map(|_| AtomicUsize::new(0)).collect();
                pool.run(counts.len(), |unit| {
                    counts[unit].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                if round % 100 == 0 {
                    // Long enough for the workers to fall asleep.
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let mut pool = Pool::new(3).unwrap();
        let run = AssertUnwindSafe(|| pool.run(9, |unit| assert_ne!(unit, 4, "four")));
        let panic = catch_unwind(run).unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("four"));
        let count = AtomicUsize::new(0);
        pool.run(9, |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 9);
    }
}
