"""Many ranks: who they are, how network and checkpoints are sharded, and how jobs are launched."""
