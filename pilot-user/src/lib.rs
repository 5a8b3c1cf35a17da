//! Pilot's node: links, workers, control and the `pilot` command.
