//! Layers of experts, which only some calibration tokens reach.

use crate::plan::{Plan, SitePlan};
use lapidary_methods::{Needs, Note, Statistics};

/// Tokens below which statistics of an expert's inputs say nothing.
const FEWEST_TOKENS: u64 = 32;

/// A site of an expert as it is encoded, and what is said of it.
pub(super) struct Expert {
    pub(super) site: SitePlan,
    pub(super) notes: Vec<Note>,
}

impl Expert {
    /// The site with its method, or with what takes its place where too few tokens have come;
    /// `None` where the method wants no statistics.
    pub(super) fn new(
        site: &SitePlan,
        statistics: Option<&Statistics>,
        plan: &Plan,
    ) -> Option<Self> {
        let (mut site, mut notes) = (site.clone(), vec![]);
        if site.needs() == Needs::default() {
            return None;
        }
        let tokens = statistics.map_or(0, |statistics| statistics.tokens);
        if site.method.needs().drift {
            let what = "no drift is measured behind a router, which sends other tokens to an \
                        expert than in the uncompressed model";
            notes.push(Note::fallback(what));
        }
        let (rows, cols) = (site.linear.out_features, site.linear.in_features);
        if tokens < FEWEST_TOKENS {
            let scales = plan.scale_type(&site);
            let other = site.method.without_statistics();
            let other = other.filter(|other| other.outline(rows, cols, scales) == site.outline);
            let what = match other {
                Some(method) => {
                    site.method = method.into();
                    "encoded as without statistics"
                }
                None => "its statistics are used all the same",
            };
            let what = format!("{tokens} calibration tokens reach this expert, too few; {what}");
            notes.push(Note::fallback(what));
        } else if tokens < cols as u64 {
            let what =
                format!("{tokens} calibration tokens reach this expert, below its {cols} inputs");
            notes.push(Note::fact(what));
        }
        Some(Self { site, notes })
    }
}
