# fish completion for onnxcalib, made by share/generate.py
complete --command onnxcalib --condition __fish_use_subcommand --no-files --arguments quantize -d 'Write MODEL with layers of 8, 4, 3 or 2 bits, as QuantizeLinear/DequantizeLinear pairs that onnxruntime fuses'
complete --command onnxcalib --condition __fish_use_subcommand --no-files --arguments calibrate -d 'Write the range of each activation of MODEL, to be read, edited and given to quantize --ranges'
complete --command onnxcalib --condition __fish_use_subcommand --no-files --arguments plan -d 'Choose the bits of every layer of MODEL within a budget, by what each loses and costs, for quantize --plan'
complete --command onnxcalib --condition __fish_use_subcommand --no-files --arguments validate -d 'Compare QUANTIZED with FLOAT on samples, and exit with 3 where a gate does not hold'
complete --command onnxcalib --condition __fish_use_subcommand --no-files --arguments inspect -d 'Print what is in FILE, what onnxruntime runs on integers, and what quantize would do with a float model'
complete --command onnxcalib --condition __fish_use_subcommand --no-files --arguments targets -d 'List the devices and runtimes to whose rules validate --target can hold a file'
complete --command onnxcalib --condition __fish_use_subcommand --long-option version -d 'print the version'
complete --command onnxcalib --condition __fish_use_subcommand --long-option help -d 'show the help'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option calib -d 'Unlabelled samples' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option output -d 'Where to write' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --short-option o -d 'Where to write' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option test -d 'Samples to measure the result on' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option config -d 'TOML file with any of the settings' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option allow-code -d 'Let the TOML file name code to run'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option report -d 'Write all measurements to this JSON file' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option html -d 'Write a page to look at to this file, or - for standard output' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option quiet -d 'Print warnings and errors only'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option verbose -d 'Show tracebacks'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option weight-bits -d 'Bits of the weights of all layers' --exclusive --arguments '8 4 3 2'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option activation-bits -d 'Bits of the activations that layers read' --exclusive --arguments '32 16 8 4'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option activations -d 'Grids of what a MatMul, Gemm or LSTM reads' --exclusive --arguments 'static dynamic'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option first-last-bits -d 'Bits of first and last layers’ weights' --exclusive --arguments '8 4 3 2'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option embedding-bits -d 'Bits of tables that a Gather looks up by row' --exclusive --arguments '32 8 4'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option target -d 'What the file is made for' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option exclude -d 'Nodes that stay in float' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option pipeline -d 'Stages after calibration' --exclusive --arguments 'light parallel default advanced'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option effort -d 'Time spent on layers of less than 8 bits' --exclusive --arguments 'fast balanced best'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option samples -d 'Use only the first so many samples' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option threads -d 'Threads to compute with' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option memory -d 'Most memory that the run may take' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option device -d 'Where layers are solved and learned' --exclusive --arguments 'auto cpu cuda'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option cache-dir -d 'Folder that keeps what calibration and planning measured, for the next run' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option work-dir -d 'Folder for the checkpoints of a run, from which the next one goes on where it is stopped' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option resume -d 'Demand checkpoints to go on from, or start anew'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option fresh -d 'Demand checkpoints to go on from, or start anew'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option plan -d 'Bit plan to use' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option candidates -d 'Bits that layers may get, those of weights (W) and of activations (A); behind A32, g and the inputs that share a scale' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option max-size -d 'Largest file' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option max-bops -d 'Most bit operations of a sample (MACs times both bits): a share, or a number (2e9).' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option max-latency -d 'Longest time of a run' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option max-a16 -d 'Most elements of activations in % that may have 16 bits, for targets that take these' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option max-loss -d 'Largest divergence of the outputs' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option max-disagreement -d 'Most samples in % whose top class may change' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option latencies -d 'CSV file of layer, configuration and milliseconds' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option jobs -d 'Worker processes that plan, and that reconstruct where samples or blocks can be shared out' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option scheduler -d 'Dask cluster that does so in their place' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option pixel-range -d 'Range of pixels before mean and std, which are on the same scale' --exclusive --arguments '0..1 0..255'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option mean -d 'Mean that images are normalised with' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option std -d 'Standard deviation that images are normalised with, written as the mean is' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option resize -d 'Length to which the shorter side of an image is resized, or height and width, in pixels' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option crop -d 'Size of the centre of an image that is kept, in pixels' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option letterbox -d 'Size into which a whole image is fitted, between bars, in place of resize and crop' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option fill -d 'Pixel value of the bars of letterbox' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option multiple-of -d 'Number of which both sides are made multiples' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option interpolation -d 'How images are resized' --exclusive --arguments 'bilinear bicubic opencv'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option layout -d 'Order of the axes of the model’s input' --exclusive --arguments 'nchw nhwc'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option channels -d 'Colours of the model’s input, in their order' --exclusive --arguments 'rgb bgr gray'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option tokenizer -d 'The model’s own tokenizer.json, which turns texts into tokens' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option text-column -d 'Columns or keys that hold texts, by name, or by number from 1 in a file without a header' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option pairs -d 'Make one sample of the two texts of a row'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option no-pairs -d 'Make one sample of the two texts of a row'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option max-length -d 'Number of tokens to which texts are truncated' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option sequence-length -d 'Tokens of a sequence, where texts are one stream that is cut into samples, as language models read it' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option past -d 'Past of a decoder where the samples give none' --exclusive --arguments 'empty filled'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option state -d 'Output whose value is the input of the next step, for models with states' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option sequence-axis -d 'Axis of arrays that counts the steps of a sequence' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option sample-rate -d 'Values a second that the model takes of audio' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option window -d 'Values of audio that the model reads in a step, those of earlier steps included' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option hop -d 'Values of audio from one window to the next' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option ranges -d 'Ranges of activations to use' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option block-size -d 'Inputs of a MatMul or Gemm that share a scale, where it reads float activations' --exclusive --arguments '16 32 64 128 256 column'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option weight-symmetry -d 'Whether the weights of a MatMul or Gemm that reads float activations have zero points beside their scales' --exclusive --arguments 'symmetric asymmetric'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option range -d 'How the range of an activation is chosen from its values' --exclusive --arguments 'min-max percentile squared-error entropy'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option percentile -d 'Share of the values in % that the range of method percentile holds' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option encoding -d 'How weights are stored' --exclusive --arguments 'runtime standard matmulnbits'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option weight-range -d 'Integers that weights may have' --exclusive --arguments 'bounded full'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option placement -d 'What runs on integers' --exclusive --arguments 'cost measured all'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option smoothing -d 'Even the channels of what transformers’ layers read (SmoothQuant), where outputs gain' --exclusive --arguments 'auto off'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option rotation -d 'Mix channels of transformers, where outputs gain (QuaRot); folded adds no operator for it' --exclusive --arguments 'auto folded off'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option reconstruct -d 'Solve and learn the integers of layers'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option no-reconstruct -d 'Solve and learn the integers of layers'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option distill -d 'Train weights of few bits, or all of a model whose layers read few, end to end'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option no-distill -d 'Train weights of few bits, or all of a model whose layers read few, end to end'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option statistics -d 'Give the outputs of layers the means and deviations that they have in the float model'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option no-statistics -d 'Give the outputs of layers the means and deviations that they have in the float model'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option biases -d 'Train the biases of all layers end to end'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option no-biases -d 'Train the biases of all layers end to end'
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option steps -d 'AdaQuant steps of every block' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option views -d 'Copies of each sample beside itself' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option seed -d 'Seed of all random choices' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option class-axis -d 'Axis of the classes in outputs of three or more axes, for agreement' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option shape -d 'Fixed dimensions of the model’s inputs, and so of samples and of the file that is written' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option max-unpacked -d 'Most that the samples of .npz and .pb files may take unpacked, in temporary files' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option max-pixels -d 'Most pixels of an image, before and after resizing' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option max-line -d 'Longest line, or row of several lines, of a file of texts' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from quantize' --long-option help -d 'Show this message and exit'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option calib -d 'Unlabelled samples' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option output -d 'Where to write' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --short-option o -d 'Where to write' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option plan -d 'Bit plan to calibrate for' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option histograms -d 'Histograms to choose ranges from, without a pass over the samples' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option save-histograms -d 'Where to write the histograms of all activations, for another --range or another machine' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option config -d 'TOML file with any of the settings' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option allow-code -d 'Let the TOML file name code to run'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option quiet -d 'Print warnings and errors only'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option verbose -d 'Show tracebacks'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option weight-bits -d 'Bits of the weights of all layers' --exclusive --arguments '8 4 3 2'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option activation-bits -d 'Bits of the activations that layers read' --exclusive --arguments '32 16 8 4'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option activations -d 'Grids of what a MatMul, Gemm or LSTM reads' --exclusive --arguments 'static dynamic'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option first-last-bits -d 'Bits of first and last layers’ weights' --exclusive --arguments '8 4 3 2'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option embedding-bits -d 'Bits of tables that a Gather looks up by row' --exclusive --arguments '32 8 4'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option target -d 'What the file is made for' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option exclude -d 'Nodes that stay in float' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option samples -d 'Use only the first so many samples' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option threads -d 'Threads to compute with' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option memory -d 'Most memory that the run may take' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option cache-dir -d 'Folder that keeps what calibration and planning measured, for the next run' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option pixel-range -d 'Range of pixels before mean and std, which are on the same scale' --exclusive --arguments '0..1 0..255'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option mean -d 'Mean that images are normalised with' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option std -d 'Standard deviation that images are normalised with, written as the mean is' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option resize -d 'Length to which the shorter side of an image is resized, or height and width, in pixels' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option crop -d 'Size of the centre of an image that is kept, in pixels' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option letterbox -d 'Size into which a whole image is fitted, between bars, in place of resize and crop' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option fill -d 'Pixel value of the bars of letterbox' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option multiple-of -d 'Number of which both sides are made multiples' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option interpolation -d 'How images are resized' --exclusive --arguments 'bilinear bicubic opencv'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option layout -d 'Order of the axes of the model’s input' --exclusive --arguments 'nchw nhwc'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option channels -d 'Colours of the model’s input, in their order' --exclusive --arguments 'rgb bgr gray'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option tokenizer -d 'The model’s own tokenizer.json, which turns texts into tokens' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option text-column -d 'Columns or keys that hold texts, by name, or by number from 1 in a file without a header' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option pairs -d 'Make one sample of the two texts of a row'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option no-pairs -d 'Make one sample of the two texts of a row'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option max-length -d 'Number of tokens to which texts are truncated' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option sequence-length -d 'Tokens of a sequence, where texts are one stream that is cut into samples, as language models read it' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option past -d 'Past of a decoder where the samples give none' --exclusive --arguments 'empty filled'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option state -d 'Output whose value is the input of the next step, for models with states' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option sequence-axis -d 'Axis of arrays that counts the steps of a sequence' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option sample-rate -d 'Values a second that the model takes of audio' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option window -d 'Values of audio that the model reads in a step, those of earlier steps included' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option hop -d 'Values of audio from one window to the next' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option block-size -d 'Inputs of a MatMul or Gemm that share a scale, where it reads float activations' --exclusive --arguments '16 32 64 128 256 column'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option weight-symmetry -d 'Whether the weights of a MatMul or Gemm that reads float activations have zero points beside their scales' --exclusive --arguments 'symmetric asymmetric'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option range -d 'How the range of an activation is chosen from its values' --exclusive --arguments 'min-max percentile squared-error entropy'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option percentile -d 'Share of the values in % that the range of method percentile holds' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option placement -d 'What runs on integers' --exclusive --arguments 'cost measured all'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option smoothing -d 'Even the channels of what transformers’ layers read (SmoothQuant), where outputs gain' --exclusive --arguments 'auto off'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option rotation -d 'Mix channels of transformers, where outputs gain (QuaRot); folded adds no operator for it' --exclusive --arguments 'auto folded off'
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option shape -d 'Fixed dimensions of the model’s inputs, and so of samples and of the file that is written' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option max-unpacked -d 'Most that the samples of .npz and .pb files may take unpacked, in temporary files' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option max-pixels -d 'Most pixels of an image, before and after resizing' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option max-line -d 'Longest line, or row of several lines, of a file of texts' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from calibrate' --long-option help -d 'Show this message and exit'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option calib -d 'Unlabelled samples' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option output -d 'Where to write' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --short-option o -d 'Where to write' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option config -d 'TOML file with any of the settings' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option allow-code -d 'Let the TOML file name code to run'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option html -d 'Write a page to look at to this file, or - for standard output' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option quiet -d 'Print warnings and errors only'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option verbose -d 'Show tracebacks'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option frontier -d 'Show the least loss of every size too'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option candidates -d 'Bits that layers may get, those of weights (W) and of activations (A); behind A32, g and the inputs that share a scale' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option max-size -d 'Largest file' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option max-bops -d 'Most bit operations of a sample (MACs times both bits): a share, or a number (2e9).' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option max-latency -d 'Longest time of a run' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option max-a16 -d 'Most elements of activations in % that may have 16 bits, for targets that take these' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option max-loss -d 'Largest divergence of the outputs' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option max-disagreement -d 'Most samples in % whose top class may change' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option latencies -d 'CSV file of layer, configuration and milliseconds' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option jobs -d 'Worker processes that plan, and that reconstruct where samples or blocks can be shared out' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option scheduler -d 'Dask cluster that does so in their place' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option activation-bits -d 'Bits of the activations that layers read' --exclusive --arguments '32 16 8 4'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option activations -d 'Grids of what a MatMul, Gemm or LSTM reads' --exclusive --arguments 'static dynamic'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option first-last-bits -d 'Bits of first and last layers’ weights' --exclusive --arguments '8 4 3 2'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option embedding-bits -d 'Bits of tables that a Gather looks up by row' --exclusive --arguments '32 8 4'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option target -d 'What the file is made for' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option exclude -d 'Nodes that stay in float' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option effort -d 'Time spent on layers of less than 8 bits' --exclusive --arguments 'fast balanced best'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option samples -d 'Use only the first so many samples' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option threads -d 'Threads to compute with' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option memory -d 'Most memory that the run may take' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option device -d 'Where layers are solved and learned' --exclusive --arguments 'auto cpu cuda'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option cache-dir -d 'Folder that keeps what calibration and planning measured, for the next run' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option pixel-range -d 'Range of pixels before mean and std, which are on the same scale' --exclusive --arguments '0..1 0..255'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option mean -d 'Mean that images are normalised with' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option std -d 'Standard deviation that images are normalised with, written as the mean is' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option resize -d 'Length to which the shorter side of an image is resized, or height and width, in pixels' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option crop -d 'Size of the centre of an image that is kept, in pixels' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option letterbox -d 'Size into which a whole image is fitted, between bars, in place of resize and crop' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option fill -d 'Pixel value of the bars of letterbox' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option multiple-of -d 'Number of which both sides are made multiples' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option interpolation -d 'How images are resized' --exclusive --arguments 'bilinear bicubic opencv'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option layout -d 'Order of the axes of the model’s input' --exclusive --arguments 'nchw nhwc'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option channels -d 'Colours of the model’s input, in their order' --exclusive --arguments 'rgb bgr gray'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option tokenizer -d 'The model’s own tokenizer.json, which turns texts into tokens' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option text-column -d 'Columns or keys that hold texts, by name, or by number from 1 in a file without a header' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option pairs -d 'Make one sample of the two texts of a row'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option no-pairs -d 'Make one sample of the two texts of a row'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option max-length -d 'Number of tokens to which texts are truncated' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option sequence-length -d 'Tokens of a sequence, where texts are one stream that is cut into samples, as language models read it' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option past -d 'Past of a decoder where the samples give none' --exclusive --arguments 'empty filled'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option state -d 'Output whose value is the input of the next step, for models with states' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option sequence-axis -d 'Axis of arrays that counts the steps of a sequence' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option sample-rate -d 'Values a second that the model takes of audio' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option window -d 'Values of audio that the model reads in a step, those of earlier steps included' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option hop -d 'Values of audio from one window to the next' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option weight-symmetry -d 'Whether the weights of a MatMul or Gemm that reads float activations have zero points beside their scales' --exclusive --arguments 'symmetric asymmetric'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option range -d 'How the range of an activation is chosen from its values' --exclusive --arguments 'min-max percentile squared-error entropy'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option percentile -d 'Share of the values in % that the range of method percentile holds' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option encoding -d 'How weights are stored' --exclusive --arguments 'runtime standard matmulnbits'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option weight-range -d 'Integers that weights may have' --exclusive --arguments 'bounded full'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option placement -d 'What runs on integers' --exclusive --arguments 'cost measured all'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option smoothing -d 'Even the channels of what transformers’ layers read (SmoothQuant), where outputs gain' --exclusive --arguments 'auto off'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option rotation -d 'Mix channels of transformers, where outputs gain (QuaRot); folded adds no operator for it' --exclusive --arguments 'auto folded off'
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option seed -d 'Seed of all random choices' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option class-axis -d 'Axis of the classes in outputs of three or more axes, for agreement' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option shape -d 'Fixed dimensions of the model’s inputs, and so of samples and of the file that is written' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option max-unpacked -d 'Most that the samples of .npz and .pb files may take unpacked, in temporary files' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option max-pixels -d 'Most pixels of an image, before and after resizing' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option max-line -d 'Longest line, or row of several lines, of a file of texts' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from plan' --long-option help -d 'Show this message and exit'
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option data -d 'Samples that were not used to quantize' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option labels -d 'Classes of the samples' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option config -d 'TOML file with any of the settings' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option allow-code -d 'Let the TOML file name code to run'
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option explain -d 'Find the layers that cause the loss'
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option quiet -d 'Print warnings and errors only'
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option verbose -d 'Show tracebacks'
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option max-drop -d 'Most that accuracy may drop' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option min-agreement -d 'Least share of samples in % whose top class stays' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option min-sqnr -d 'Least signal to quantization noise ratio of every output, in dB' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option max-size-ratio -d 'Largest file, as a share of the float model’s file' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option min-speedup -d 'Least speedup' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option max-unfused -d 'Most QuantizeLinear and DequantizeLinear that onnxruntime does not fuse' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option max-steps -d 'Most quantization steps by which graph optimizations may change the output of a layer' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option max-saturating -d 'Most integer kernels that can saturate on x86 without VNNI' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option min-reference-sqnr -d 'Least SQNR of every output against onnx’s reference evaluator, in dB' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option target -d 'Hold the file to the rules of this target, and run it in its runtime where that is installed' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option min-placed -d 'Least share of nodes in % that the runtime of --target places on its device' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option confident -d 'Demand that the whole 95% interval of a measure clears its gate'
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option no-confident -d 'Demand that the whole 95% interval of a measure clears its gate'
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option metric -d 'Your own metric' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option json -d 'Write all measurements to this file' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option junit -d 'Write the gates as test cases to this file, for CI servers' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option markdown -d 'Write tables to this file, for the comment of a pull request' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option html -d 'Write a page to look at to this file, or - for standard output' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option pixel-range -d 'Range of pixels before mean and std, which are on the same scale' --exclusive --arguments '0..1 0..255'
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option mean -d 'Mean that images are normalised with' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option std -d 'Standard deviation that images are normalised with, written as the mean is' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option resize -d 'Length to which the shorter side of an image is resized, or height and width, in pixels' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option crop -d 'Size of the centre of an image that is kept, in pixels' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option letterbox -d 'Size into which a whole image is fitted, between bars, in place of resize and crop' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option fill -d 'Pixel value of the bars of letterbox' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option multiple-of -d 'Number of which both sides are made multiples' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option interpolation -d 'How images are resized' --exclusive --arguments 'bilinear bicubic opencv'
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option layout -d 'Order of the axes of the model’s input' --exclusive --arguments 'nchw nhwc'
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option channels -d 'Colours of the model’s input, in their order' --exclusive --arguments 'rgb bgr gray'
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option tokenizer -d 'The model’s own tokenizer.json, which turns texts into tokens' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option text-column -d 'Columns or keys that hold texts, by name, or by number from 1 in a file without a header' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option pairs -d 'Make one sample of the two texts of a row'
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option no-pairs -d 'Make one sample of the two texts of a row'
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option max-length -d 'Number of tokens to which texts are truncated' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option sequence-length -d 'Tokens of a sequence, where texts are one stream that is cut into samples, as language models read it' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option past -d 'Past of a decoder where the samples give none' --exclusive --arguments 'empty filled'
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option state -d 'Output whose value is the input of the next step, for models with states' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option sequence-axis -d 'Axis of arrays that counts the steps of a sequence' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option sample-rate -d 'Values a second that the model takes of audio' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option window -d 'Values of audio that the model reads in a step, those of earlier steps included' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option hop -d 'Values of audio from one window to the next' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option samples -d 'Use only the first so many samples' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option reference -d 'Compare both sessions with onnx’s reference evaluator, on the first so many samples' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option device-timeout -d 'Seconds in which the runtime of --target must have compiled the file, and made each run' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option batch -d 'Samples in a run that is timed' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option class-axis -d 'Axis of the classes in outputs of three or more axes, for agreement' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option threads -d 'Threads to compute with' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option shape -d 'Fixed dimensions of the model’s inputs, and so of samples and of the file that is written' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option max-unpacked -d 'Most that the samples of .npz and .pb files may take unpacked, in temporary files' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option max-pixels -d 'Most pixels of an image, before and after resizing' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option max-line -d 'Longest line, or row of several lines, of a file of texts' --exclusive
complete --command onnxcalib --condition '__fish_seen_subcommand_from validate' --long-option help -d 'Show this message and exit'
complete --command onnxcalib --condition '__fish_seen_subcommand_from inspect' --long-option json -d 'Write all of it to this file' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from inspect' --long-option html -d 'Write all of it to this file, as a page to look at' --require-parameter --force-files
complete --command onnxcalib --condition '__fish_seen_subcommand_from inspect' --long-option quiet -d 'Print warnings and errors only'
complete --command onnxcalib --condition '__fish_seen_subcommand_from inspect' --long-option verbose -d 'Show tracebacks'
complete --command onnxcalib --condition '__fish_seen_subcommand_from inspect' --long-option help -d 'Show this message and exit'
complete --command onnxcalib --condition '__fish_seen_subcommand_from targets' --long-option verbose -d 'Show tracebacks'
complete --command onnxcalib --condition '__fish_seen_subcommand_from targets' --long-option help -d 'Show this message and exit'
