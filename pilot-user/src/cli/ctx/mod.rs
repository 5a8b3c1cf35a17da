//! `pilot ctx`: shared contexts from the command line. One node serves the contexts of a file; others show, follow and change
//! them.

mod changes;
mod file;
mod remote;
mod through_host;

pub(super) use file::Deletions;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use pilot_engine::PeerId;

use super::{Failure, NodeArgs, Output, listen};
use crate::context::tokens::Conversation;
use crate::context::{Follow, Kind};
use crate::link::doorbell::Doorbell;
use crate::service::contexts::ContextOwner;
use changes::{PatchArgs, SetArgs};

#[derive(Subcommand, Debug)]
pub(super) enum CtxCommand {
    /// Write a new context into a file for `pilot ctx serve`, which is made if it is not there.
    Create {
        /// The file.
        file: PathBuf,
        /// The context's name.
        name: String,
        /// What the document is.
        #[arg(long, value_enum, default_value_t = KindChoice::Json)]
        kind: KindChoice,
        /// A file with the document that it begins with, instead of an empty one.
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// Peers that may follow it, by their names in the configuration; `*`: all that are there.
        #[arg(long, value_name = "PEER,..", value_delimiter = ',')]
        read: Vec<String>,
        /// Peers that may change it.
        #[arg(long, value_name = "PEER,..", value_delimiter = ',')]
        write: Vec<String>,
        /// Keep it on the disk: no version is announced before it is there.
        #[arg(long)]
        durable: bool,
    },
    /// Take a context out of a file. A node that serves the file deletes it at once, and tells who follows it.
    Delete {
        /// The file.
        file: PathBuf,
        /// The context's name.
        name: String,
    },
    /// Have the node of this host hold the contexts of a file, or one of the command's own where none runs, until told to stop.
    Serve {
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Replace a document.
    Set {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        to: SetArgs,
    },
    /// Change a document.
    Patch {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        by: PatchArgs,
    },
    /// Print a document, and then each change to it, until told to stop; come back when the connection ends.
    Follow {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        part: Part,
        /// Rather the latest values than every change.
        #[arg(long)]
        latest: bool,
        /// A file to keep the copy in, and to go on from.
        #[arg(long, value_name = "FILE")]
        keep: Option<PathBuf>,
        /// Stop after so many changes.
        #[arg(long, value_name = "CHANGES")]
        count: Option<u64>,
        /// Say how many tokens (o200k_base) a model was given so far, and how many by the whole document each time.
        #[arg(long)]
        tokens: bool,
    },
    /// Print a document.
    Show {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        part: Part,
    },
}

/// Which context of whom.
#[derive(Args, Debug)]
pub(super) struct Target {
    /// The context's name.
    name: String,
    /// The name of the peer that holds it, in the configuration.
    peer: String,
    #[command(flatten)]
    node: NodeArgs,
}

/// Which part of a document.
#[derive(Args, Debug)]
pub(super) struct Part {
    /// Only the part of a JSON document at this JSON pointer, such as /tasks/0.
    #[arg(long, value_name = "POINTER")]
    filter: Option<String>,
}

/// [`Kind`], as an argument.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum KindChoice {
    Json,
    Text,
    Log,
    Bytes,
}

impl From<KindChoice> for Kind {
    fn from(choice: KindChoice) -> Self {
        match choice {
            KindChoice::Json => Self::Json,
            KindChoice::Text => Self::Text,
            KindChoice::Log => Self::Log,
            KindChoice::Bytes => Self::Bytes,
        }
    }
}

pub(super) fn run(command: CtxCommand, output: &Output) -> Result<(), Failure> {
    match command {
        CtxCommand::Create { file, name, kind, from, read, write, durable } => {
            let entry = file::Entry { name, kind: kind.into(), durable, from, incarnation: None, read, write };
            file::create(&file, entry, output)
        }
        CtxCommand::Delete { file, name } => file::delete(&file, &name, output),
        CtxCommand::Serve { file, node } => match through_host::serve(&node, &file, output)? {
            Some(()) => Ok(()),
            None => listen::run(&node, None, Some(&file), output),
        },
        CtxCommand::Set { target, to } => remote::change(&target, to.condition()?, to.change()?, output),
        CtxCommand::Patch { target, by } => remote::change(&target, by.condition()?, by.change()?, output),
        CtxCommand::Follow { target, part, latest, keep, count, tokens } => {
            let follow = Follow { name: target.name.clone(), filter: part.filter, latest };
            let conversation = tokens.then(Conversation::default);
            remote::follow(&target, follow, keep, count, conversation, output)
        }
        CtxCommand::Show { target, part } => {
            let follow = Follow { name: target.name.clone(), filter: part.filter, latest: true };
            remote::show(&target, follow, output)
        }
    }
}

/// The service that holds the contexts of a file, and what is to look at that now and then.
pub(super) fn owner(
    file: &Path,
    peers: &[(String, PeerId)],
    doorbell: Doorbell,
) -> Result<(ContextOwner, Deletions), Failure> {
    file::hold(file, peers, doorbell)
}
