"""Recording a training run, and reading runs and adapters back."""
