//! What a budget counts, what of it can be reached, and the best choice within it.

use super::{Survey, Unit, UnitChoice, is_counted, least_bytes, least_cost};
use crate::EngineError;
use crate::plan::read_by_a_token;
use crate::recipe::Budget;
use crate::structure::steps;
use lapidary_methods::allocate::{Allocation, Choice, allocate};
use lapidary_model::spec;
use lapidary_weight::TermOutline;

impl Survey<'_> {
    /// Refuses a budget that no choice keeps.
    pub(super) fn check_budget(&self) -> Result<(), EngineError> {
        let unreachable = |asked: String, least: String| {
            Err(EngineError::Refused(format!("{asked} cannot be reached: {least}")))
        };
        match self.budget {
            Budget::BitsPerWeight(bits) => {
                let (least, _) = self.range_of_bits();
                if bits < least {
                    let what = format!(
                        "the smallest candidates take {least:.4} with their scales; ask for {:.3} or \
                         more, or add smaller ones",
                        (least * 1e3).ceil() / 1e3
                    );
                    return unreachable(format!("{bits} bits a weight"), what);
                }
            }
            Budget::Size(bytes) => {
                let (least, _) = self.range_of_sizes()?;
                if bytes < least {
                    let what = format!(
                        "with the smallest candidates they take {least} ({:.2} MB); ask for that or \
                         more, or add smaller candidates",
                        least.div_ceil(10_000) as f64 / 100.0
                    );
                    return unreachable(format!("weight files of {bytes} bytes"), what);
                }
            }
            Budget::Parameters(count) => {
                let least = self.fixed_parameters() + self.least(|_, choice| choice.left);
                if count < least {
                    let what = format!(
                        "the sparsest candidates leave {least}; ask for that or more, or list more \
                         sparsity"
                    );
                    return unreachable(format!("{count} parameters"), what);
                }
            }
            Budget::Speedup(times) => {
                self.check_speed()?;
                let least = self.fixed_bytes() + self.least(|unit, choice| self.read(unit, choice));
                let most = self.whole_bytes()? as f64 / least.max(1) as f64;
                if times > most {
                    let what = format!(
                        "with the smallest candidates {most:.3} times are expected; ask for that or \
                         less, or add smaller candidates"
                    );
                    return unreachable(format!("{times} times the speed"), what);
                }
            }
            Budget::Divergence(_) if self.plan().spec.head.is_none() => {
                let what = "the model has no language-model head and so no divergence to limit; \
                            use --bpw or --size";
                return Err(EngineError::Refused(what.to_owned()));
            }
            Budget::Divergence(_) => {}
        }
        Ok(())
    }

    /// The best choice within the budget.
    pub(super) fn within_budget(
        &self,
        losses: &[Vec<Choice>],
    ) -> Result<Option<Allocation>, EngineError> {
        Ok(match self.budget {
            Budget::BitsPerWeight(bits) => {
                let counted = self.units.iter().filter(|unit| is_counted(unit));
                let weights: u64 = counted.map(|unit| unit.weights).sum();
                allocate(&self.counted(losses), (bits * weights as f64 / 8.0).floor())
            }
            Budget::Size(bytes) => self.fit_size(losses, bytes)?,
            Budget::Parameters(count) => {
                let sized = self.sized(losses, |_, choice| choice.left);
                allocate(&sized, count.saturating_sub(self.fixed_parameters()) as f64)
            }
            Budget::Speedup(times) => {
                let sized = self.sized(losses, |unit, choice| self.read(unit, choice));
                let bytes = (self.whole_bytes()? as f64 / times).floor();
                allocate(&sized, bytes - self.fixed_bytes() as f64)
            }
            Budget::Divergence(nats) => {
                let turn = |choice: &Choice| Choice { size: choice.cost, cost: choice.size };
                let turned: Vec<Vec<Choice>> =
                    losses.iter().map(|unit| unit.iter().map(turn).collect()).collect();
                let least: f64 = losses.iter().map(|unit| least_cost(unit)).sum();
                if nats < least {
                    let what = format!(
                        "a divergence of {nats} cannot be reached: that of the best candidates is \
                         predicted to be {least:.6}; ask for more, or add better candidates"
                    );
                    return Err(EngineError::Refused(what));
                }
                allocate(&turned, nats)
            }
        })
    }

    /// The losses, with sizes only where a budget of bits for each weight counts them.
    pub(super) fn counted(&self, losses: &[Vec<Choice>]) -> Vec<Vec<Choice>> {
        self.sized(losses, |unit, choice| if is_counted(unit) { choice.bytes } else { 0 })
    }

    /// The losses, with what a budget counts of each choice as its size.
    fn sized(
        &self,
        losses: &[Vec<Choice>],
        size: impl Fn(&Unit, &UnitChoice) -> u64,
    ) -> Vec<Vec<Choice>> {
        let of_unit = |(unit, losses): (&Unit, &Vec<Choice>)| {
            let choices = unit.choices.iter().zip(losses);
            let sized = |(choice, loss): (&UnitChoice, &Choice)| Choice {
                size: size(unit, choice) as f64,
                cost: loss.cost,
            };
            choices.map(sized).collect()
        };
        self.units.iter().zip(losses).map(of_unit).collect()
    }

    /// The least that all units together can have.
    fn least(&self, size: impl Fn(&Unit, &UnitChoice) -> u64) -> u64 {
        let least = |unit: &Unit| unit.choices.iter().map(|choice| size(unit, choice)).min();
        self.units.iter().filter_map(least).sum()
    }

    /// Parameters of the model that are in no unit.
    fn fixed_parameters(&self) -> u64 {
        let plan = self.plan();
        let pruned: u64 = plan.sites.iter().map(|site| plan.pruned(site)).sum();
        let in_units: u64 = self.units.iter().map(|unit| unit.weights).sum();
        plan.parameters() + pruned - in_units
    }

    /// Bytes of a unit that every token reads: none of a table that is only looked up in.
    fn read(&self, unit: &Unit, choice: &UnitChoice) -> u64 {
        let spec = &self.plan().spec;
        let sites = &self.plan().sites;
        let of_unit = sites.iter().filter(|site| unit.modules.contains(&site.linear.module));
        let is_read = of_unit
            .map(|site| read_by_a_token(spec, |weight| u64::from(weight == site.linear.weight)))
            .sum::<u64>();
        if is_read > 0 { choice.bytes } else { 0 }
    }

    /// Bytes that every token reads of what is in no unit.
    fn fixed_bytes(&self) -> u64 {
        let plan = self.plan();
        let in_a_site = |weight: &str| plan.sites.iter().any(|site| site.linear.weight == weight);
        read_by_a_token(&plan.spec, |weight| match in_a_site(weight) {
            true => 0,
            false => plan.stored_bytes(weight),
        })
    }

    /// Bytes that every token reads of the uncompressed model.
    fn whole_bytes(&self) -> Result<u64, EngineError> {
        let bytes = |weight: &str| {
            self.source.get(weight).map_or(0, |tensor| self.source.stored_bytes(tensor))
        };
        Ok(read_by_a_token(&spec(self.source.config())?, bytes))
    }

    /// Refuses candidates of which no speed can be expected: those whose time is not in proportion to
    /// their bytes, and those of a model that is cut first, whose speed is more than theirs.
    fn check_speed(&self) -> Result<(), EngineError> {
        if self.source.is_cut() || !steps(self.recipe)?.is_empty() {
            let what = "a budget of speed chooses among cuts, or among what is done to a whole model, \
                        and here one follows the other; use --size";
            return Err(EngineError::Refused(what.to_owned()));
        }
        let is_sparse = |term: &TermOutline| matches!(term, TermOutline::Sparse { .. });
        let sites = self.candidates.iter().flat_map(|candidate| &candidate.plan.sites);
        match sites.into_iter().find(|site| site.outline.terms.iter().any(is_sparse)) {
            None => Ok(()),
            Some(site) => Err(EngineError::Refused(format!(
                "{}: the time of sparse weights is not in proportion to their bytes, so that no \
                 speed can be expected of them; use --size or --parameters",
                site.linear.module
            ))),
        }
    }

    /// The best whose files, headers and all, take no more than `bytes`. The length of a header
    /// depends on what is in it: what the files exceed the limit by is taken off until they do not.
    fn fit_size(
        &self,
        losses: &[Vec<Choice>],
        bytes: u64,
    ) -> Result<Option<Allocation>, EngineError> {
        let smallest: u64 = self.units.iter().map(least_bytes).sum();
        let (least, _) = self.range_of_sizes()?;
        let mut budget = smallest + (bytes - least.min(bytes));
        loop {
            let Some(allocation) = allocate(losses, budget as f64) else { return Ok(None) };
            let plan = self.plan_of(&self.merged(&allocation.choices)?)?;
            let excess = self.file_bytes(&plan)?.saturating_sub(bytes);
            if excess == 0 {
                return Ok(Some(allocation));
            }
            budget = budget.saturating_sub(excess);
        }
    }
}
