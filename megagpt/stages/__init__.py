"""What can be trained: each stage defines a task and runs the loop."""
