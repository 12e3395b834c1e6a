// Package replay is what is known of replays: of samples that are to be sent again. A [Spec] says what somebody asks for, a [Record] what that
// means for the streams as they were then, and a [Status] how far it has come.
//
// A replay is an entry of the bucket `replays`. Every process that runs the writer service follows the bucket, and runs the replay for the partitions that
// it owns. How far a partition has come, and what has become of its samples, is its position in the bucket `positions` and the [Progress] that is stored
// with it; whether a replay is done follows from the positions alone. So nobody needs to survive for a replay to go on: who takes over a partition takes over
// its part of all replays.
package replay
