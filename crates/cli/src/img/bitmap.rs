//! `bitmap`: its command line.

use super::Naming;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use img::bitmap::{self, Action, BitmapOptions};
use img::{Code, Failure};
use std::path::PathBuf;

/// Makes, removes or changes a persistent bitmap of a qcow2 image
#[derive(Args, Debug)]
pub struct BitmapArgs {
    #[command(flatten)]
    naming: Naming,
    #[command(flatten)]
    actions: Actions,
    /// Format of the image
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Bytes of the disk that a bit of a new bitmap stands for
    #[arg(short, long, value_name = "SIZE")]
    granularity: Option<String>,
    /// The image that has the bitmap which is merged
    #[arg(short = 'b', long, value_name = "FILE")]
    source_file: Option<PathBuf>,
    /// Format of that image
    #[arg(short = 'F', long, value_name = "FMT", requires = "source_file")]
    source_format: Option<String>,
    /// Opens the files that the images name (not in qemu-img, which always does)
    #[arg(long)]
    allow_backing: bool,
    /// The image
    filename: PathBuf,
    /// The bitmap
    bitmap: String,
}

/// What is done, in the order in which it was said.
#[derive(Clone, Debug, Default)]
struct Actions(Vec<Action>);

/// The actions that have no value, by the names of their options, and what they do.
const PLAIN: [(&str, Action, &str); 5] = [
    ("add", Action::Add, "Makes it; it records writes"),
    ("remove", Action::Remove, "Removes it"),
    ("clear", Action::Clear, "Clears all its bits"),
    ("enable", Action::Enable, "Makes it record writes"),
    ("disable", Action::Disable, "Makes it stay as it is"),
];

impl FromArgMatches for Actions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Actions, clap::Error> {
        let mut said: Vec<(usize, Action)> = Vec::new();
        for (name, action, _) in PLAIN {
            let places = matches.indices_of(name).into_iter().flatten();
            said.extend(places.map(|place| (place, action.clone())));
        }
        let merged = matches.get_many::<String>("merge").into_iter().flatten();
        let places = matches.indices_of("merge").into_iter().flatten();
        said.extend(places.zip(merged).map(|(place, name)| (place, Action::Merge(name.clone()))));
        said.sort_by_key(|(place, _)| *place);
        Ok(Actions(said.into_iter().map(|(_, action)| action).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Actions::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Actions {
    fn augment_args(command: Command) -> Command {
        let plain = PLAIN.map(|(name, _, help)| {
            let arg = Arg::new(name).long(name).help(help).action(ArgAction::Append);
            arg.num_args(0).default_missing_value("")
        });
        let merge = Arg::new("merge").long("merge").value_name("SOURCE");
        let merge = merge.action(ArgAction::Append).help("Adds the bits of this bitmap to it");
        command.args(plain).arg(merge)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Actions::augment_args(command)
    }
}

impl BitmapArgs {
    pub(super) fn run(&self) -> Result<Code, Failure> {
        let format = self.format.as_ref();
        let source = self.source_file.as_ref().map(|path| {
            let by_name = Naming { image_opts: false, object: self.naming.object.clone() };
            by_name.image(path, self.source_format.as_ref(), false, self.allow_backing)
        });
        let options = BitmapOptions {
            image: self.naming.image(&self.filename, format, false, self.allow_backing)?,
            name: self.bitmap.clone(),
            actions: self.actions.0.clone(),
            granularity: self.granularity.as_deref().map(img::parse_size).transpose()?,
            source: source.transpose()?,
        };
        bitmap::run(&options)
    }
}
