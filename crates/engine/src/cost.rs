//! What a job cost: at every moment it is at one of a few parts, and the clocks run for that one.

use cpu_time::ProcessTime;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Parts of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Hashing the source.
    Hash,
    /// The search for a recipe.
    Search,
    /// Running calibration rows through the blocks.
    Forward,
    /// Gathering the statistics that methods ask for.
    Statistics,
    /// The methods themselves.
    Solve,
    /// Measuring the errors of the layers.
    Measure,
    /// Writing, committing, reading back.
    Write,
    /// Everything else: reading the source, planning.
    Other,
}

/// All parts, with the names that people and programs see.
const PARTS: [(Part, &str); 8] = [
    (Part::Hash, "hash"),
    (Part::Search, "search"),
    (Part::Forward, "forward"),
    (Part::Statistics, "statistics"),
    (Part::Solve, "solve"),
    (Part::Measure, "measure"),
    (Part::Write, "write"),
    (Part::Other, "other"),
];

/// Time of a part.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cost {
    /// On the wall.
    pub wall: Duration,
    /// Of all processors together.
    pub processor: Duration,
}

/// The clocks of a job.
#[derive(Debug)]
pub struct Costs(Mutex<Running>);

#[derive(Debug)]
struct Running {
    part: Part,
    wall: Instant,
    processor: ProcessTime,
    costs: [Cost; PARTS.len()],
    /// Nothing is booked any more.
    halted: bool,
}

impl Default for Costs {
    fn default() -> Self {
        Self(Mutex::new(Running {
            part: Part::Other,
            wall: Instant::now(),
            processor: ProcessTime::now(),
            costs: [Cost::default(); PARTS.len()],
            halted: false,
        }))
    }
}

impl Costs {
    /// Does `work` on the clock of `part`; whatever part was running is halted meanwhile.
    pub(crate) fn charge<T>(&self, part: Part, work: impl FnOnce() -> T) -> T {
        let before = self.switch(part);
        let result = work();
        self.switch(before);
        result
    }

    /// The parts by name, with their costs.
    pub fn by_part(&self) -> Vec<(&'static str, Cost)> {
        self.switch(Part::Other);
        let costs = self.0.lock().unwrap_or_else(PoisonError::into_inner).costs;
        PARTS.iter().map(|(part, name)| (*name, costs[*part as usize])).collect()
    }

    /// Halts the clocks for good.
    pub(crate) fn halt(&self) {
        self.switch(Part::Other);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).halted = true;
    }

    /// Books the time since the last switch, and lets the clock of `part` run; returns the part
    /// that was running.
    fn switch(&self, part: Part) -> Part {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = &mut *running;
        let (wall, processor) = (Instant::now(), ProcessTime::now());
        if running.halted {
            return running.part;
        }
        let cost = &mut running.costs[running.part as usize];
        cost.wall += wall.duration_since(running.wall);
        cost.processor += processor.duration_since(running.processor);
        (running.wall, running.processor) = (wall, processor);
        std::mem::replace(&mut running.part, part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_is_charged_to_one_part() {
        let start = Instant::now();
        let costs = Costs::default();
        let pause = || std::thread::sleep(Duration::from_millis(5));
        costs.charge(Part::Forward, || {
            pause();
            costs.charge(Part::Statistics, pause);
            pause();
        });
        let parts = costs.by_part();
        let whole = start.elapsed();
        let wall = |name| parts.iter().find(|part| part.0 == name).unwrap().1.wall;
        assert!(wall("forward") >= Duration::from_millis(10));
        assert!(wall("statistics") >= Duration::from_millis(5));
        assert!(wall("hash").is_zero());
        let sum: Duration = parts.iter().map(|part| part.1.wall).sum();
        assert!(sum <= whole, "{sum:?} of {whole:?}");
    }

    #[test]
    fn halted_clocks_stand_still() {
        let costs = Costs::default();
        costs.charge(Part::Solve, || std::thread::sleep(Duration::from_millis(2)));
        costs.halt();
        let before = costs.by_part();
        costs.charge(Part::Solve, || std::thread::sleep(Duration::from_millis(2)));
        assert_eq!(costs.by_part(), before);
    }

    #[test]
    fn the_parts_stand_at_their_own_index() {
        for (index, (part, _)) in PARTS.iter().enumerate() {
            assert_eq!(*part as usize, index);
        }
    }
}
