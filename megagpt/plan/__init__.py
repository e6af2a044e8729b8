"""Plans a run before it starts: memory, speed and cost; and checks that everything it needs is in place."""
