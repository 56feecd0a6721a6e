"""What a model can do, found without anybody naming it: samples whose answers are made alike, clustered."""
