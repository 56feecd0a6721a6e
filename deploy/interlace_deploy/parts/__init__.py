"""The parts of an Interlace on one machine as child processes: started, watched, stopped."""
