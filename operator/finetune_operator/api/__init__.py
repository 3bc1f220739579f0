"""The FineTuneJob: what a user writes (`spec`), what we tell (`status`), both together (`job`), and the CRD (`crd`)."""
