//! Models from a hub, which a `kiln` built without the feature `hub` does not fetch.

#[cfg(feature = "hub")]
pub use fetching::folder;

/// What a model can be besides what is in files, within a list.
pub const HUB_ID: &str = match cfg!(feature = "hub") {
    true => ", a hub id such as `openai-community/gpt2`",
    false => "",
};

/// What a model can be besides what is in files, at the end of a list.
pub const OR_HUB: &str = match cfg!(feature = "hub") {
    true => ", or a hub id such as `openai-community/gpt2`",
    false => ". This kiln was built without the feature `hub`, so it fetches no models",
};

/// The folder of a model that is fetched: none here.
#[cfg(not(feature = "hub"))]
pub fn folder(_name: &str) -> crate::failure::Result<Option<std::path::PathBuf>> {
    Ok(None)
}

#[cfg(feature = "hub")]
mod fetching {
    use std::path::PathBuf;

    use kiln_models::hub::{Hub, HubId};

    use crate::failure::{Failure, Result};
    use crate::progress::FileBars;

    /// The folder of the model with this id, fetched if need be; none if it is no id.
    /// Whatever goes wrong, a mistyped path may be the reason.
    pub fn folder(name: &str) -> Result<Option<PathBuf>> {
        let Ok(id) = HubId::parse(name) else {
            return Ok(None);
        };
        let bars = FileBars::default();
        let hub = Hub::from_env();
        let hub = hub.map(|hub| hub.with_progress(move |p| bars.set(&p.file, p.done, p.total)));
        let folder = hub.and_then(|hub| hub.fetch(&id)).map_err(|error| {
            let taken =
                format!("there is no file or folder `{name}` here, so it was taken as a hub id");
            Failure::because(taken, error)
        })?;
        Ok(Some(folder))
    }
}
