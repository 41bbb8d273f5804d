//! Which candidate each unit of a model takes, so that the whole loses the least and keeps a budget.
//!
//! The integer programme of HAWQ-V3 (Yao et al., 2021, arXiv 2011.10680, section 3.4), a
//! multiple-choice knapsack: `min Σ_u cost(u, c_u)` with `Σ_u size(u, c_u) ≤ budget`. For every
//! `λ ≥ 0`, `L(λ) = Σ_u min_c (cost + λ size) − λ budget` is a lower bound of it; the best one stands
//! where the walk along the units' convex hulls, steepest edges first, meets the budget, and the
//! walk gives an allocation close to it. What is between the two is closed by dynamic programming
//! over the sizes, in which a partial allocation is dropped when another is no larger and no
//! costlier, or when its own bound exceeds the best allocation known. That is exact; should the
//! partial allocations become too many, they are thinned, and `L(λ)` says by how much the result
//! can be off at the most.
//!
//! Size and cost may trade places: the least size of a given cost is the same problem.

use std::cmp::Ordering;

/// A candidate of a unit. Both figures are finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// What the budget limits.
    pub size: f64,
    /// What is to be least.
    pub cost: f64,
}

/// A candidate for each unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation {
    /// Index of the candidate of each unit.
    pub choices: Vec<usize>,
    /// Sum of their sizes.
    pub size: f64,
    /// Sum of their costs.
    pub cost: f64,
    /// No allocation within the budget costs less than this; the cost itself where the allocation
    /// is proven to be the best.
    pub bound: f64,
}

impl Allocation {
    fn of(units: &[Vec<Choice>], choices: Vec<usize>) -> Self {
        let taken = || units.iter().zip(&choices).map(|(unit, index)| unit[*index]);
        let (size, cost) = (taken().map(|c| c.size).sum(), taken().map(|c| c.cost).sum());
        Self { choices, size, cost, bound: f64::NEG_INFINITY }
    }

    /// By what part of its cost it may exceed the best; 0 when it is the best.
    pub fn gap(&self) -> f64 {
        if self.cost > self.bound { (self.cost - self.bound) / self.cost.abs() } else { 0.0 }
    }
}

/// Most partial allocations that are followed at once.
const MOST_STATES: usize = 1 << 17;

/// The allocation of the least cost within a budget; `None` when the smallest candidates exceed it.
/// A unit without candidates cannot be allocated.
pub fn allocate(units: &[Vec<Choice>], budget: f64) -> Option<Allocation> {
    allocate_with(units, budget, MOST_STATES)
}

fn allocate_with(units: &[Vec<Choice>], budget: f64, most_states: usize) -> Option<Allocation> {
    let walk = Walk::new(units)?;
    let Met { mut best, price } = walk.meet(units, budget)?;
    if price == 0.0 {
        best.bound = best.cost;
        return Some(best);
    }
    let cheapest = |unit: &Vec<Choice>| {
        unit.iter().map(|choice| choice.cost + price * choice.size).fold(f64::INFINITY, f64::min)
    };
    let least: Vec<f64> = units.iter().map(cheapest).collect();
    let bound = least.iter().sum::<f64>() - price * budget;
    let core = Core { units, budget, price, least: &least, bound, most_states };
    let (found, exact) = core.solve(best.cost);
    if let Some(found) = found.filter(|found| found.size <= budget && found.cost < best.cost) {
        best = found;
    }
    best.bound = if exact { best.cost } else { bound.min(best.cost) };
    Some(best)
}

/// Size and cost of the allocations on the convex hull of all, from the smallest to the best: each
/// is the cheapest of its size.
pub fn frontier(units: &[Vec<Choice>]) -> Vec<Choice> {
    let Some(walk) = Walk::new(units) else { return vec![] };
    let mut choices = walk.start.clone();
    let point = |choices: &[usize]| {
        let Allocation { size, cost, .. } = Allocation::of(units, choices.to_vec());
        Choice { size, cost }
    };
    let mut points = vec![point(&choices)];
    for edge in &walk.edges {
        choices[edge.unit] = edge.to;
        points.push(point(&choices));
    }
    points
}

/// The way along the hulls: from the smallest candidate of every unit, by falling gain per size.
struct Walk {
    start: Vec<usize>,
    edges: Vec<Edge>,
}

/// A step of one unit to a larger candidate.
struct Edge {
    unit: usize,
    to: usize,
    size: f64,
    /// Cost saved per size.
    gain: f64,
}

/// Where the walk meets the budget.
struct Met {
    best: Allocation,
    /// The multiplier: the gain of the first step that did not fit, 0 when all did.
    price: f64,
}

impl Walk {
    fn new(units: &[Vec<Choice>]) -> Option<Self> {
        let (mut start, mut edges) = (vec![], vec![]);
        for (unit, choices) in units.iter().enumerate() {
            let hull = hull(choices);
            start.push(*hull.first()?);
            edges.extend(hull.windows(2).map(|pair| {
                let (from, to) = (choices[pair[0]], choices[pair[1]]);
                let size = to.size - from.size;
                Edge { unit, to: pair[1], size, gain: (from.cost - to.cost) / size }
            }));
        }
        // Stable: the edges of a unit, whose gains fall, stay in order.
        edges.sort_by(|a, b| b.gain.total_cmp(&a.gain));
        Some(Self { start, edges })
    }

    fn meet(&self, units: &[Vec<Choice>], budget: f64) -> Option<Met> {
        let mut choices = self.start.clone();
        let mut size = Allocation::of(units, choices.clone()).size;
        if size > budget {
            return None;
        }
        let mut price = 0.0;
        let mut halted = vec![false; units.len()];
        for edge in &self.edges {
            if halted[edge.unit] || size + edge.size > budget {
                // Later steps of other units may still fit.
                price = f64::max(price, edge.gain);
                halted[edge.unit] = true;
                continue;
            }
            choices[edge.unit] = edge.to;
            size += edge.size;
        }
        Some(Met { best: Allocation::of(units, choices), price })
    }
}

/// Candidates that no other beats in both figures, by rising size: costs fall.
fn front(choices: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..choices.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (choices[*a], choices[*b]);
        a.size.total_cmp(&b.size).then(a.cost.total_cmp(&b.cost))
    });
    let mut best = f64::INFINITY;
    order.retain(|index| {
        let better = choices[*index].cost < best;
        best = best.min(choices[*index].cost);
        better
    });
    order
}

/// Candidates on the lower convex hull, by rising size: gains fall.
fn hull(choices: &[Choice]) -> Vec<usize> {
    let mut hull: Vec<usize> = vec![];
    for index in front(choices) {
        while let [.., a, b] = hull[..] {
            let (a, b, c) = (choices[a], choices[b], choices[index]);
            // b stays where it is below the line from a to c.
            let below =
                (a.cost - b.cost) * (c.size - a.size) > (a.cost - c.cost) * (b.size - a.size);
            if below {
                break;
            }
            hull.pop();
        }
        hull.push(index);
    }
    hull
}

/// What is left to decide once a bound and a price are known.
struct Core<'a> {
    units: &'a [Vec<Choice>],
    budget: f64,
    price: f64,
    /// Of each unit, the least of `cost + price · size`.
    least: &'a [f64],
    /// `L(price)`.
    bound: f64,
    most_states: usize,
}

/// A partial allocation: of the units so far.
#[derive(Clone, Copy)]
struct State {
    size: f64,
    cost: f64,
    /// What it adds to the bound.
    excess: f64,
    /// Which state of the units before it continues, and with which candidate.
    before: u32,
    choice: u32,
}

impl Core<'_> {
    /// The best allocation that costs no more than `upper`, and whether all were looked at.
    fn solve(&self, upper: f64) -> (Option<Allocation>, bool) {
        let upper = upper + 1e-12 * upper.abs();
        let smallest = |unit: &Vec<Choice>| {
            unit.iter().map(|choice| choice.size).fold(f64::INFINITY, f64::min)
        };
        let mut rest: f64 = self.units.iter().map(smallest).sum();
        let mut exact = true;
        let mut states = vec![State { size: 0.0, cost: 0.0, excess: 0.0, before: 0, choice: 0 }];
        let mut layers: Vec<Vec<(u32, u32)>> = vec![];
        for (unit, choices) in self.units.iter().enumerate() {
            rest -= smallest(choices);
            let mut next = vec![];
            for index in front(choices) {
                let choice = choices[index];
                let excess = choice.cost + self.price * choice.size - self.least[unit];
                for (before, state) in states.iter().enumerate() {
                    let state = State {
                        size: state.size + choice.size,
                        cost: state.cost + choice.cost,
                        excess: state.excess + excess,
                        before: before as u32,
                        choice: index as u32,
                    };
                    if state.size + rest <= self.budget && self.bound + state.excess <= upper {
                        next.push(state);
                    }
                }
            }
            drop_beaten(&mut next);
            if next.len() > self.most_states {
                exact = false;
                thin(&mut next, self.most_states);
            }
            layers.push(next.iter().map(|state| (state.before, state.choice)).collect());
            states = next;
        }
        // Costs fall as sizes rise: the last state is the cheapest.
        let Some(mut at) = states.len().checked_sub(1) else { return (None, exact) };
        let mut choices = vec![];
        for layer in layers.iter().rev() {
            let (before, choice) = layer[at];
            choices.push(choice as usize);
            at = before as usize;
        }
        choices.reverse();
        (Some(Allocation::of(self.units, choices)), exact)
    }
}

/// Keeps the states that no other beats in both size and cost, by rising size.
fn drop_beaten(states: &mut Vec<State>) {
    let order = |a: &State, b: &State| -> Ordering {
        a.size.total_cmp(&b.size).then(a.cost.total_cmp(&b.cost))
    };
    states.sort_by(order);
    let mut best = f64::INFINITY;
    states.retain(|state| {
        let better = state.cost < best;
        best = best.min(state.cost);
        better
    });
}

/// Keeps the states with the least bounds, in order.
fn thin(states: &mut Vec<State>, most: usize) {
    let mut excesses: Vec<f64> = states.iter().map(|state| state.excess).collect();
    excesses.sort_by(f64::total_cmp);
    let limit = excesses[most - 1];
    let mut kept = 0;
    states.retain(|state| {
        kept += usize::from(state.excess <= limit);
        state.excess <= limit && kept <= most
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The best of all allocations, one by one.
    fn by_enumeration(units: &[Vec<Choice>], budget: f64) -> Option<f64> {
        let mut best: Option<f64> = None;
        let mut choices = vec![0; units.len()];
        loop {
            let allocation = Allocation::of(units, choices.clone());
            if allocation.size <= budget {
                best = Some(best.map_or(allocation.cost, |cost| cost.min(allocation.cost)));
            }
            let Some(unit) = (0..units.len()).find(|u| choices[*u] + 1 < units[*u].len()) else {
                return best;
            };
            choices[unit] += 1;
            choices[..unit].fill(0);
        }
    }

    fn units() -> impl Strategy<Value = Vec<Vec<Choice>>> {
        // Small whole numbers make ties and points on a line; costs fall with the size or do not.
        let choice = (1..40_u32, 0..60_u32)
            .prop_map(|(size, cost)| Choice { size: f64::from(size), cost: f64::from(cost) / 8.0 });
        prop::collection::vec(prop::collection::vec(choice, 1..5), 1..7)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn it_is_the_best_of_all(units in units(), part in 0.0..1.1_f64) {
            let all: f64 = units.iter().flatten().map(|choice| choice.size).sum();
            let budget = (part * all).floor();
            let best = by_enumeration(&units, budget);
            let found = allocate(&units, budget);
            prop_assert_eq!(found.as_ref().map(|found| found.cost), best);
            if let (Some(found), Some(best)) = (found, best) {
                prop_assert!(found.size <= budget && found.gap() == 0.0);
                let thinned = allocate_with(&units, budget, 1).unwrap();
                prop_assert!(thinned.size <= budget && thinned.cost >= best);
                prop_assert!(thinned.bound <= best + 1e-9, "{} above {best}", thinned.bound);
            }
        }

        #[test]
        fn every_point_of_the_frontier_is_the_best_of_its_size(units in units()) {
            let points = frontier(&units);
            for point in &points {
                let best = by_enumeration(&units, point.size).unwrap();
                prop_assert!((best - point.cost).abs() < 1e-9, "{point:?}, {best}");
            }
            prop_assert!(points.windows(2).all(|p| p[0].size < p[1].size && p[0].cost > p[1].cost));
        }
    }

    /// Like a model: 120 units of unequal weight, errors that fall fourfold with each bit.
    fn model() -> Vec<Vec<Choice>> {
        let unit = |unit: u32| {
            let weights = f64::from([553, 331, 1769, 884][unit as usize % 4] * 1024);
            let sensitivity = 1e-4 * (1.0 + f64::from(unit * 7919 % 101));
            let choice = |bits: i32| Choice {
                size: (weights * (f64::from(bits) + 0.25) / 8.0).floor(),
                cost: sensitivity * 0.26_f64.powi(bits) * (1.0 + f64::from(unit % 13) / 50.0),
            };
            [2, 3, 4, 5, 6, 8].map(choice).to_vec()
        };
        (0..120).map(unit).collect()
    }

    #[test]
    fn a_whole_model_is_allocated_with_a_proof_and_costs_fall_with_the_budget() {
        let units = model();
        let weights: f64 = units.iter().map(|unit| unit[0].size / 2.25 * 8.0).sum();
        let mut before = f64::INFINITY;
        for bits in [2.3, 2.75, 3.0, 3.25, 3.5, 4.25, 6.0, 8.25] {
            let budget = weights * bits / 8.0;
            let found = allocate(&units, budget).unwrap();
            assert!(found.gap() < 1e-6, "{bits}: {}", found.gap());
            assert!(found.size <= budget && found.size > 0.999 * budget, "{bits}");
            assert!(found.cost < before, "{bits}");
            before = found.cost;
        }
        assert!(allocate(&units, weights * 2.2 / 8.0).is_none());
    }

    #[test]
    fn the_least_size_of_a_cost_is_the_same_problem() {
        let units = model();
        let least = frontier(&units)[200];
        let turned: Vec<Vec<Choice>> = units
            .iter()
            .map(|u| u.iter().map(|c| Choice { size: c.cost, cost: c.size }).collect())
            .collect();
        let found = allocate(&turned, least.cost * (1.0 + 1e-9)).unwrap();
        assert!((found.cost - least.size).abs() <= 1e-6 * least.size && found.gap() < 1e-6);
    }

    #[test]
    fn nothing_to_choose_is_an_allocation_too() {
        assert_eq!(allocate(&[], 0.0).unwrap().choices, Vec::<usize>::new());
        assert!(allocate(&[vec![]], 1.0).is_none());
    }
}
