"""The budget book, the journal, the shipper and the store: where spend is held, settled and recorded."""
