"""Recording a training run into its run directory."""
