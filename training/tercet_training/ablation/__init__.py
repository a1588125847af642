"""The ablation of the method on the synthetic world: every composition, by kind of modification."""
