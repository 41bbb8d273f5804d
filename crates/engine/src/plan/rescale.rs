//! What the blockwise steps of a plan will change besides the weights they go to.

use super::SitePlan;
use lapidary_methods::Note;
use lapidary_model::{Absorber, InputGroup, Place, Spec};

/// What the steps of a plan rescale.
#[derive(Default)]
pub(super) struct Rescaled {
    /// Tensors that are written changed and not encoded, with the stage that settles them.
    pub(super) tensors: Vec<(String, Option<Place>)>,
    /// What departs from the recipe, by site.
    pub(super) notes: Vec<(String, Note)>,
}

/// Finds what the scales of every input go into; layers whose input nothing can absorb scales of
/// keep their other steps only.
pub(super) fn settle(spec: &Spec, sites: &mut [SitePlan]) -> Rescaled {
    let mut rescaled = Rescaled::default();
    let blocks = spec.blocks.iter().enumerate().map(|(index, graph)| (Place::Block(index), graph));
    for (place, graph) in blocks.chain(spec.head.iter().map(|graph| (Place::Head, graph))) {
        for group in graph.shared_inputs() {
            let is_scaled = |site: &SitePlan| site.blockwise.is_some() && reads(&group, site);
            if !sites.iter().any(is_scaled) {
                continue;
            }
            let Some(absorber) = graph.absorber(group.value) else {
                for site in sites.iter_mut().filter(|site| is_scaled(site)) {
                    site.blockwise = None;
                    let what = "nothing before it can absorb scales of its inputs; left unscaled";
                    rescaled.notes.push((site.linear.module.clone(), Note::fallback(what)));
                }
                continue;
            };
            for tensor in changed(&absorber, &group) {
                let is_site = sites.iter().any(|site| site.linear.weight == tensor);
                let is_known = rescaled.tensors.iter().any(|(name, _)| *name == tensor);
                if !(is_site || is_known) {
                    rescaled.tensors.push((tensor, Some(place)));
                }
            }
        }
    }
    rescaled
}

fn reads(group: &InputGroup<'_>, site: &SitePlan) -> bool {
    group.linears.iter().any(|linear| linear.weight == site.linear.weight)
}

/// Every tensor that scales of an input change.
fn changed(absorber: &Absorber<'_>, group: &InputGroup<'_>) -> Vec<String> {
    let mut tensors: Vec<String> = match absorber {
        Absorber::Norm { gain, bias, .. } => {
            std::iter::once(*gain).chain(*bias).map(str::to_owned).collect()
        }
        Absorber::Rows { linear, .. } => {
            std::iter::once(&linear.weight).chain(&linear.bias).cloned().collect()
        }
    };
    tensors.extend(group.linears.iter().map(|linear| linear.weight.clone()));
    tensors
}
