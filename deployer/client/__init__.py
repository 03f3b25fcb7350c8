"""The control API as Python calls: one method a verb, and a follower that outlives the manager."""
